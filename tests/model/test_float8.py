"""Weights in e4m3: rounded once, and every form of the network multiplies the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from openmercury.model.attention import DenseAttend
from openmercury.model.costs import FORMATS, packable
from openmercury.model.float8 import FLOAT8, Float8Linear, Float8LoRA, round_weights
from openmercury.model.transformer import Transformer, fold_norms
from tests import tiny


def run(model: Transformer) -> Tensor:
    """Logits of twelve positions, of which the last six are noisy."""
    ids, position = torch.arange(12).view(1, 12) % 7, torch.arange(12).view(1, 12)
    mask = (position[..., None] >= position[:, None]).expand(1, 12, 12)
    return model.logits(model(ids, position, DenseAttend(mask), position >= 6)[0])


def uneven_norms(model: Transformer) -> Transformer:
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_size_keep_four_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(60, 48) * torch.logspace(-20, 20, 60)[:, None]).to(dtype)
    linear = Float8Linear(weight, None)
    held = linear.weight.double() * linear.scale.double()[:, None]
    large = weight.double().abs() > weight.double().abs().amax(1, keepdim=True) / 2**13  # where e4m3 is normal
    error = ((held - weight.double()) / weight.double()).abs()
    assert error[large].max() <= 2**-4
    assert error[large].mean() < 2**-5
    assert torch.equal(held.to(torch.bfloat16).double(), held)  # exact in the format of the activations


def test_rows_of_zeros_and_the_largest_values() -> None:
    weight = torch.tensor([[0.0, 0.0], [448.0, -448.0], [3.0e38, 1.0]])
    linear = Float8Linear(weight, None)
    held = linear.weight.double() * linear.scale[:, None]
    assert torch.equal(held[:2], weight[:2].double())
    assert held[2, 0] == pytest.approx(3.0e38, rel=2**-4)


def test_a_folded_network_computes_the_same() -> None:
    model = uneven_norms(tiny.network())
    with torch.inference_mode():
        before = run(model)
        fold_norms(model)
        torch.testing.assert_close(run(model), before)
    assert all((layer.attention_norm.weight == 1).all() for layer in model.layers)


def test_a_rounded_network_is_the_plain_one_with_rounded_weights() -> None:
    model = uneven_norms(tiny.network())
    plain = copy.deepcopy(model)
    fold_norms(plain)
    with torch.inference_mode():
        exact = run(plain)
        round_weights(model)
        assert not any(isinstance(module, nn.Linear) for module in model.modules())
        assert model.embedding.weight.dtype == torch.float64
        rounded = dict(model.named_modules())
        for name, module in plain.named_modules():
            other = rounded[name]
            if isinstance(other, Float8Linear):
                assert other.weight.dtype == FLOAT8
                module.weight = nn.Parameter(other.weight.double() * other.scale[:, None])  # the embedding stays
            elif isinstance(other, Float8LoRA):
                module.a.data = other.a.weight.double() * other.a.scale[:, None]  # type: ignore[union-attr]
        got, expected = run(model), run(plain)
    torch.testing.assert_close(got, expected)
    seen = exact.isfinite()
    assert 1e-3 < (got - exact)[seen].norm() / exact[seen].norm() < 0.2


def test_fp8_has_no_packed_form() -> None:
    assert not packable(FORMATS["fp8"])
    assert FORMATS["fp8"].bytes == 1
