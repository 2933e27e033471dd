"""Weights in the layout that oneDNN multiplies fastest: decoding on a CPU spends most of its time there.

A plain matrix product of few rows reads, or first repacks, the whole weight on every call; packed once at loading, a
forward over 8 positions takes a third of the time in float32 and half of it in bfloat16 (docs/log.md). Inference only:
packed weights have no gradient and cannot be saved. They need PyTorch's own oneDNN operators, which exist for x86 CPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openmercury.model.adapter import GatedLoRA
from openmercury.model.transformer import Transformer

PACKED_DTYPES = (torch.float32, torch.bfloat16)
ROWS_HINT = 4  # rows a layout is chosen for; as measured good from 1 to 64


def can_pack(dtype: torch.dtype) -> bool:
    """Has this PyTorch the operators, and do they take `dtype` on this processor?"""
    if dtype not in PACKED_DTYPES or not torch.backends.mkldnn.is_available():
        return False
    try:
        PackedLinear(torch.eye(2, dtype=dtype), None)(torch.ones(1, 2, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False
    return True


class PackedLinear(nn.Module):
    """y = Wx + b with W [out, in] held packed; takes any number of leading axes."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return result


class PackedLoRA(nn.Module):
    """`GatedLoRA` on packed weights."""

    def __init__(self, lora: GatedLoRA, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b = PackedLinear(lora.a.to(dtype), None), PackedLinear(lora.b.to(dtype), None)

    def forward(self, x_BNI: Tensor, gate_BN1: Tensor) -> Tensor:
        result: Tensor = self.b(self.a(x_BNI) * gate_BN1)
        return result


def pack(model: Transformer) -> bool:
    """Replace all linear layers of a CPU network in place; False where this machine has no packed products.

    A tied head is packed as a copy, since the embedding reads single rows.
    """
    weight = model.embedding.weight
    if weight.device.type != "cpu" or not can_pack(weight.dtype):
        return False
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias))
            elif isinstance(child, GatedLoRA):
                setattr(module, name, PackedLoRA(child, weight.dtype))
    return True
