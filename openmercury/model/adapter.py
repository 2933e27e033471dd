"""The gated adapter: a LoRA on every linear that acts on noisy positions only, and the mask token's own vector.

y = Wx + g·B(Ax), with g = 1 on noisy positions and 0 on clean ones. At g = 0 the base weights decide alone, so the KV
cache of clean text and the AR logits are those of the base model, whatever the adapter learned. q, k, v share one A,
as do gate and up, because the base holds them as one fused matrix. LoRA: arXiv 2106.09685.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openmercury.model.config import ModelConfig


class GatedLoRA(nn.Module):
    """Low-rank update of one linear layer: `a` is [rank, in], `b` is [out, rank] and starts at zero."""

    def __init__(self, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, d_in))
        self.b = nn.Parameter(torch.zeros(d_out, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    @property
    def learns(self) -> bool:
        """Is it trained? Its twins on packed and on 8-bit weights never are."""
        return self.a.requires_grad

    def forward(self, x_BNI: Tensor, gate_BN1: Tensor) -> Tensor:
        """[B, N, in] → [B, N, out], zero wherever the gate is."""
        a, b = self.a.to(x_BNI.dtype), self.b.to(x_BNI.dtype)
        return F.linear(F.linear(x_BNI, a) * gate_BN1, b)


class _Adapted(torch.autograd.Function):
    """W x + b + B (g · A x) of a frozen W as one product: [W ‖ B] [x ; g · A x].

    Written out, since autograd of the two products moves every output three times, and costs more than W itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, gate: Tensor) -> Tensor:
        wide = torch.cat((x, (x @ a.T) * gate), dim=-1)
        ctx.save_for_backward(wide, weight, a, b, gate)
        return F.linear(wide, torch.cat((weight, b), dim=1), bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        wide, weight, a, b, gate = ctx.saved_tensors
        (slope,) = slopes
        width = weight.shape[1]
        d_wide = slope @ torch.cat((weight, b), dim=1)
        d_low = d_wide[:, width:] * gate
        d_x = torch.addmm(d_wide[:, :width], d_low, a)
        return d_x, None, None, d_low.T @ wide[:, :width], slope.T @ wide[:, width:], None


def adapted(linear: nn.Linear, lora: GatedLoRA, x_BNI: Tensor, gate_BN1: Tensor) -> Tensor:
    """`linear` with its update, for training the update alone: equal to the sum of the two, up to rounding."""
    x_MI, gate_M1 = x_BNI.flatten(0, -2), gate_BN1.flatten(0, -2)
    a, b = lora.a.to(x_MI.dtype), lora.b.to(x_MI.dtype)
    out = _Adapted.apply(x_MI, linear.weight, linear.bias, a, b, gate_M1)  # type: ignore[no-untyped-call]
    return cast(Tensor, cast(Tensor, out).unflatten(0, x_BNI.shape[:-1]))


class LayerAdapter(nn.Module):
    """The four updates of one Transformer layer."""

    def __init__(self, config: ModelConfig, rank: int) -> None:
        super().__init__()
        d, e = config.d_model, config.head_size
        self.qkv = GatedLoRA(d, (config.n_heads + 2 * config.n_kv_heads) * e, rank)
        self.out = GatedLoRA(config.n_heads * e, d, rank)
        self.gate_up = GatedLoRA(d, 2 * config.d_ffn, rank)
        self.down = GatedLoRA(config.d_ffn, d, rank)


class Chain(nn.Module):
    """Ties a draft to the token before it, which a mask hid from the network: hidden x becomes x + Oᵀ silu(B e + S x).

    e is the embedding of the token before, and e and x are scaled to mean square 1 there. Drafts made in one forward
    are each likely, but not together; with the token before known, they are chosen one after the other, at the cost of
    a few short vectors each (`diffusion/chain.py`). (Heads that see the drafts before them: arXiv 2402.05109.)
    All three matrices are [rank, D]; O and S start at zero.
    """

    def __init__(self, d_model: int, rank: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.empty(rank, d_model))
        self.state = nn.Parameter(torch.zeros(rank, d_model))
        self.out = nn.Parameter(torch.zeros(rank, d_model))
        nn.init.normal_(self.before, std=1 / math.sqrt(d_model))

    def of_token(self, embedding_ND: Tensor) -> Tensor:
        """B e, [N, rank]."""
        return F.linear(unit(embedding_ND), self.before.to(embedding_ND.dtype))

    def of_state(self, hidden_ND: Tensor) -> Tensor:
        """S x, [N, rank]."""
        return F.linear(unit(hidden_ND), self.state.to(hidden_ND.dtype))

    def forward(self, hidden_ND: Tensor, embedding_ND: Tensor) -> Tensor:
        """Hidden states [N, D] that know the tokens before them, of embeddings [N, D]."""
        inner = F.silu(self.of_token(embedding_ND.to(hidden_ND.dtype)) + self.of_state(hidden_ND))
        return hidden_ND + inner @ self.out.to(hidden_ND.dtype)


def unit(x_ND: Tensor) -> Tensor:
    """Each row scaled to mean square 1."""
    return F.rms_norm(x_ND, x_ND.shape[-1:], eps=1e-6)


class Adapter(nn.Module):
    """All that training touches: one `LayerAdapter` a layer, the embedding of the mask token [D], and the chain of
    drafts, if there is one."""

    def __init__(self, config: ModelConfig, rank: int, chain: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LayerAdapter(config, rank) for _ in range(config.n_layers))
        self.mask_vector = nn.Parameter(torch.zeros(config.d_model))
        self.chain = Chain(config.d_model, chain) if chain else None
