"""Weights in 8-bit floats (e4m3), one scale an output row: half the bytes of bfloat16 where reading them is what costs.

Activations stay as they are. Scales are powers of two: what a float loses by rounding does not depend on its scale, and
a weight times its scale is then exact in bfloat16, so that every form of this network multiplies the same numbers.
e4m3: arXiv 2209.05433.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openmercury.model.adapter import GatedLoRA
from openmercury.model.packed import SLICE_ROWS, replace_products
from openmercury.model.transformer import Transformer, fold_norms

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST_CAPABILITY = (8, 9)  # of an NVIDIA GPU that converts e4m3 in hardware


class Float8Linear(nn.Module):
    """y = s·(Wx) + b with W [out, in] in e4m3 and a power of two s for each output."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.empty(weight.shape, dtype=FLOAT8, device=weight.device)
        self.scale = torch.empty(len(weight), device=weight.device)
        for part, scale, out in zip(
            *(x.split(SLICE_ROWS) for x in (weight.detach(), self.scale, self.weight)), strict=True
        ):
            most = part.abs().amax(1).float().clamp_(min=1e-30)
            scale.copy_(torch.ldexp(torch.ones_like(most), torch.frexp(most / LARGEST).exponent))
            out.copy_(part.float() / scale[:, None])
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


class Float8LoRA(nn.Module):
    """`GatedLoRA` with A in e4m3, since it is read together with W."""

    learns = False

    def __init__(self, lora: GatedLoRA) -> None:
        super().__init__()
        self.a, self.b = Float8Linear(lora.a, None), lora.b.detach()

    def forward(self, x_BNI: Tensor, gate_BN1: Tensor) -> Tensor:
        return F.linear(self.a(x_BNI) * gate_BN1, self.b.to(x_BNI.dtype))


def round_weights(model: Transformer) -> None:
    """Replace all linear layers of a network in place. A tied head becomes a copy: embeddings keep their format."""
    fold_norms(model)
    replace_products(model, Float8Linear, Float8LoRA)
