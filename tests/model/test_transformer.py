"""Our network equals `transformers` on the same weights, and the adapter is silent on clean positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openmercury.model.attention import DenseAttend
from openmercury.model.config import ModelConfig, RopeScaling, Yarn, from_hf, to_hf
from openmercury.model.convert import save_hf
from openmercury.model.transformer import Transformer
from openmercury.model.weights import load_model
from tests import tiny


def causal(n: int) -> torch.Tensor:
    return torch.ones(1, n, n).tril().bool()


def logits_of(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    position = torch.arange(ids.shape[1])[None].expand_as(ids)
    mask = causal(ids.shape[1]).expand(len(ids), -1, -1)
    return model.logits(model(ids, position, DenseAttend(mask)))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_equals_transformers(architecture: str, tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = tiny.network(dtype=torch.float32, of=tiny.config(architecture, adapter=False, tied=tied))
    save_hf(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, 60, (2, 17))
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(ours, ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
        prompt = ids[:1, :5]
        expected = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=[999])[0].tolist()
        text = prompt[0].tolist()
        for _ in range(12):
            text.append(int(logits_of(ours, torch.tensor([text]))[0, -1].argmax()))
    assert text == expected


def test_llama3_rope_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    base = tiny.config("llama", adapter=False)
    ours = tiny.network(dtype=torch.float32, of=base.model_copy(update={"rope_scaling": scaling}))
    save_hf(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, 60, (1, 40))
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(ours, ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention_factor", [None, 1.3])
def test_yarn_equals_transformers(tmp_path: Path, attention_factor: float | None) -> None:
    """Within and far beyond the original context."""
    transformers = pytest.importorskip("transformers")
    scaling = Yarn(factor=4.0, original_max_position_embeddings=64, beta_fast=8, attention_factor=attention_factor)
    config = tiny.config("qwen2", adapter=False).model_copy(update={"rope_scaling": scaling, "rope_theta": 1e4})
    ours = tiny.network(dtype=torch.float32, of=config)
    save_hf(ours, tmp_path)
    assert load_model(tmp_path, dtype=torch.float32).config == config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, 60, (1, 200))
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(ours, ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_hf_folder_round_trip(architecture: str, tmp_path: Path) -> None:
    model = tiny.network(of=tiny.config(architecture, adapter=False), dtype=torch.float32)
    save_hf(model, tmp_path)
    again = load_model(tmp_path, dtype=torch.float32)
    assert again.config == model.config
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_config_round_trip() -> None:
    config = tiny.config("qwen2")
    assert from_hf(to_hf(config)) == config
    assert isinstance(config, ModelConfig)


def test_adapter_is_silent_on_clean_positions() -> None:
    model = tiny.network()
    ids, position = torch.randint(0, 60, (2, 9)), torch.arange(9)[None].expand(2, -1)
    attend = DenseAttend(causal(9).expand(2, -1, -1))
    clean = model(ids, position, attend)
    assert torch.equal(clean, model(ids, position, attend, torch.zeros(2, 9, dtype=torch.bool)))
    noisy = torch.zeros(2, 9, dtype=torch.bool)
    noisy[:, 5:] = True
    mixed = model(ids, position, attend, noisy)
    assert torch.equal(clean[:, :5], mixed[:, :5])
    assert not torch.allclose(clean[:, 5:], mixed[:, 5:])


def test_mask_token_is_never_predicted() -> None:
    model = tiny.network()
    assert torch.isneginf(model.logits(torch.randn(3, 32, dtype=torch.float64))[:, tiny.MASK]).all()
