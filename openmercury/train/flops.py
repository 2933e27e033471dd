"""Floating-point operations of training, a token of the rows, and what devices offer: the two sides of MFU.

A product of [N, in] and [out, in] is 2 · N · in · out; its gradients are as much again for the input and for the
weights, each where it is wanted. What activation checkpointing computes twice is counted once: MFU is of the model,
not of the hardware. Norms, rotation and softmax are left out, as usual (arXiv 2204.02311, appendix B).

P = weights of all layers' matrices, A = those of the adapter, V·D the head; of the positions a share s passes the noisy
half and a share m has a loss. With c copies of the noisy half (complementary masks: 2, which share m; DPO: its samples,
each of m):

    clean half      2P, and as much again for the gradient of its input and for that of its weights, where they learn
    noisy half      c s (2P + 2P + 6A), and 2P more where the weights learn
    head            m (student and the gradient of its input 4 V·D, teacher 2 V·D, gradient of the head 2 V·D)
    attention       like the products around it, over half a row of keys; backward is twice its forward
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
    """A, without the mask vector and the chain."""
    facts = config.diffusion
    rank = 0 if facts is None or facts.adapter is None else facts.adapter.rank
    return config.n_layers * rank * sum(o + i for o, i in layer_matrices(config))


def adapter_parameters(config: ModelConfig) -> int:
    """A, the mask vector, and the chain, which only rows with a loss pass."""
    facts = config.diffusion
    chain = 0 if facts is None or facts.adapter is None else facts.adapter.chain
    return adapter_weights(config) + (3 * chain + 1) * config.d_model


def attention_flops(config: ModelConfig, keys: float) -> float:
    """Of one token's forward through all layers, with `keys` keys on average: q·k and p·v."""
    return 4.0 * keys * config.n_heads * config.head_size * config.n_layers


def training_flops(recipe: Recipe, config: ModelConfig, trained: float) -> float:
    """Of one token of the rows, forward and backward; `trained` is m. Texts are taken to be as long as their rows."""
    products, attention = 2.0 * body_weights(config), attention_flops(config, recipe.data.row_length / 2)
    update, head = 2.0 * adapter_weights(config), 2.0 * config.vocab_size * config.d_model
    objective, base_learns = recipe.objective, recipe.learn != "adapter"
    read = products + attention  # one forward
    learnt = products * (3 if recipe.learn == "full" else 2) + 3 * attention + 3 * update  # and its backward
    if objective.kind in ("ar", "masked_diffusion"):
        return learnt + trained * head * (2 + base_learns)
    clean = learnt - 3 * update if base_learns else read
    share = getattr(objective, "noisy_share", 1.0)
    copies = getattr(objective, "samples", 2 if getattr(objective, "complementary", False) else 1)
    taught = objective.kind == "block_diffusion" and objective.kl > 0
    loss = trained * head * (2 + taught + base_learns)
    if objective.kind == "dpo":  # the reference reads both halves
        return clean + read + copies * (learnt + read + update + loss + trained * head)
    return clean + (read if taught and base_learns else 0.0) + copies * share * learnt + loss
