"""Floating-point operations of training, a token of the rows, and what devices offer: the two sides of MFU.

A product of [N, in] and [out, in] is 2 · N · in · out; its gradients are as much again for the input and for the
weights, each where it is wanted. What activation checkpointing computes twice is counted once: MFU is of the model,
not of the hardware. Norms, rotation and softmax are left out, as usual (arXiv 2204.02311, appendix B).

P = weights of all layers' matrices, A = those of the adapter, V·D the head, s = share of positions in the noisy half,
m = share of positions with a loss:

    adapter           clean 2P · noisy s(2P + 2P + 6A) · head m · 6 V·D (student, teacher, gradient) · attention
    all weights       6P a half, of which there are 1 + s with blocks, else 1 · head m · 6 V·D
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openmercury.model.config import ModelConfig
from openmercury.train.config import Recipe

if TYPE_CHECKING:
    import torch

# Dense bf16 with fp32 accumulation, from the makers' data sheets; SXM where a card comes in several forms.
PEAK = {"B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def peak_of(name: str) -> float | None:
    """FLOP/s of a device by a name that contains one of `PEAK`."""
    return next((value for key, value in PEAK.items() if key.lower() in name.lower()), None)


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of a device; None where nobody says."""
    import torch

    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def layer_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """[out, in] of the matrices of one layer."""
    d, e = config.d_model, config.head_size
    qkv = (config.n_heads + 2 * config.n_kv_heads) * e
    return [(qkv, d), (d, config.n_heads * e), (2 * config.d_ffn, d), (d, config.d_ffn)]


def body_weights(config: ModelConfig) -> int:
    """P."""
    return config.n_layers * sum(o * i for o, i in layer_matrices(config))


def adapter_weights(config: ModelConfig) -> int:
    """A, without the mask vector."""
    facts = config.diffusion
    rank = 0 if facts is None or facts.adapter is None else facts.adapter.rank
    return config.n_layers * rank * sum(o + i for o, i in layer_matrices(config))


def attention_flops(config: ModelConfig, keys: float) -> float:
    """Of one token's forward through all layers, with `keys` keys on average: q·k and p·v."""
    return 4.0 * keys * config.n_heads * config.head_size * config.n_layers


def training_flops(recipe: Recipe, config: ModelConfig, trained: float) -> float:
    """Of one token of the rows, forward and backward; `trained` is m. Texts are taken to be as long as their rows."""
    body, update = 2.0 * body_weights(config), 2.0 * adapter_weights(config)
    head = 2.0 * config.vocab_size * config.d_model
    half = attention_flops(config, recipe.data.row_length / 2)
    kind = recipe.objective.kind
    share = getattr(recipe.objective, "noisy_share", 1.0)
    halves = HALVES.get(kind, 1)
    if recipe.adapted:
        return body + half + share * (2 * body + 3 * update + 3 * half) + 3 * trained * head
    noisy = share if halves == 2 else 0.0
    return (1 + noisy) * 3 * (body + half) + 3 * trained * head


HALVES = {"block_diffusion": 2}
