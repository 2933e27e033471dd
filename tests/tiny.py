"""Tiny random networks for the equality tests."""

from __future__ import annotations

import torch

from openmercury.model.config import AdapterFacts, DiffusionFacts, ModelConfig
from openmercury.model.transformer import Transformer

MASK = 63
EOS = 3


def config(architecture: str = "qwen2", *, adapter: bool = True, tied: bool = True, chain: int = 0) -> ModelConfig:
    facts = DiffusionFacts(mask_id=MASK, block_size=6, adapter=AdapterFacts(rank=4, chain=chain)) if adapter else None
    return ModelConfig(
        architecture=architecture,  # type: ignore[arg-type]
        vocab_size=64,
        d_model=32,
        d_ffn=48,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_size=8,
        tied=tied,
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        max_context=256,
        eos_ids=(EOS,),
        diffusion=facts,
    )


def network(seed: int = 0, dtype: torch.dtype = torch.float64, of: ModelConfig | None = None) -> Transformer:
    """Random weights with enough spread that predictions differ from position to position."""
    torch.manual_seed(seed)
    model = Transformer(of or config()).to(dtype)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5)
    return model.requires_grad_(False)
