"""Networks of published sizes with random weights, to time forwards at the sizes people serve.

Dimensions as in the `config.json` of Qwen/Qwen2.5-1.5B, Qwen/Qwen2.5-7B and GSAI-ML/LLaDA-8B-Base. All decode as our
own checkpoints do, clean attention causal and noise through an adapter: LLaDA's own is bidirectional, at equal cost.
"""

from __future__ import annotations

import torch

from openmercury.errors import InputError
from openmercury.model.config import AdapterFacts, DiffusionFacts, ModelConfig
from openmercury.model.transformer import Transformer
from openmercury.model.weights import empty_model

RANK = 128
CHAIN = 256
SPREAD = 0.02  # standard deviation of the weights


def _qwen(d_model: int, d_ffn: int, heads: tuple[int, int], vocab_size: int, *, tied: bool) -> ModelConfig:
    return ModelConfig(
        architecture="qwen2",
        vocab_size=vocab_size,
        d_model=d_model,
        d_ffn=d_ffn,
        n_layers=28,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        head_size=128,
        rope_theta=1_000_000.0,
        tied=tied,
        qkv_bias=True,
        diffusion=_facts(vocab_size),
    )


def _facts(vocab_size: int) -> DiffusionFacts:
    return DiffusionFacts(mask_id=vocab_size - 1, adapter=AdapterFacts(rank=RANK, chain=CHAIN))


SHAPES = {
    "qwen2.5-1.5b": _qwen(1536, 8960, (12, 2), 151_936, tied=True),
    "qwen2.5-7b": _qwen(3584, 18_944, (28, 4), 152_064, tied=False),
    "llada-8b": ModelConfig(
        architecture="llama",
        vocab_size=126_464,
        d_model=4096,
        d_ffn=12_288,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_size=128,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        max_context=4096,
        tied=False,
        diffusion=_facts(126_464),
    ),
}


def config_of(name: str) -> ModelConfig:
    """One of `SHAPES`; raises InputError for another name."""
    if name not in SHAPES:
        raise InputError(f"there is no shape {name!r}: use one of {', '.join(SHAPES)}")
    return SHAPES[name]


def random_model(name: str, dtype: torch.dtype, device: torch.device) -> Transformer:
    """A network of one of `SHAPES`, made on the device."""
    model = empty_model(config_of(name), dtype, device)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        else:
            parameter.data.normal_(0.0, SPREAD)
    return model
