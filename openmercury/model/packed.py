"""Weights in the layout that oneDNN multiplies fastest: decoding on a CPU spends most of its time there.

A plain matrix product of few rows reads, or first repacks, the whole weight on every call; packed once at loading, a
forward over 8 positions takes a third of the time in float32 and half of it in bfloat16 (docs/log.md). Inference only:
packed weights have no gradient and cannot be saved. They need PyTorch's own oneDNN operators, which exist for x86 CPUs.

In int8 the weights are rounded to 8 bits, one scale an output channel, and each row of the input as it comes, one scale
a row: products of whole numbers, summed exactly, so a row's result does not depend on the rows beside it. The adapter
keeps the format of the activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openmercury.model.adapter import GatedLoRA
from openmercury.model.transformer import Transformer

PACKED_DTYPES = (torch.float32, torch.bfloat16)
ROWS_HINT = 4  # rows a layout is chosen for; as measured good from 1 to 64
LEAST_ROWS = 4  # oneDNN takes longer over one row than over four, in every format (docs/log.md)
LARGEST = 127.0  # of the whole numbers used, on both sides of zero
ZERO = 128  # where zero lies in unsigned rows
SLICE_ROWS = 4096  # of a weight rounded at once, which bounds the float32 copy


Kind = Callable[[Tensor, Tensor | None], nn.Module]  # makes a packed layer of a plain one's weight and bias


def can_pack(kind: Kind, dtype: torch.dtype) -> bool:
    """Has this PyTorch the operators of `kind`, do they take `dtype` on this processor, and are their sums right?

    Old processors add pairs of 8-bit products in 16 bits, and the sum of two large ones does not fit.
    """
    if dtype not in PACKED_DTYPES or not torch.backends.mkldnn.is_available():
        return False
    ones = torch.ones(64, 64, dtype=dtype)
    try:
        y = kind(ones, None)(ones[:1])
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(y, ones[:1] * 64, rtol=0.01)


def over_enough_rows(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The product of x [.., in], padded to `LEAST_ROWS` where it has fewer rows."""
    leading = x.shape[:-1]
    missing = LEAST_ROWS - leading.numel()
    if missing <= 0:
        return product(x)
    padded = product(F.pad(x.flatten(0, -2), (0, 0, 0, missing)))
    result: Tensor = padded[:-missing].unflatten(0, leading)
    return result


class PackedLinear(nn.Module):
    """y = Wx + b with W [out, in] held packed; takes any number of leading axes."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return over_enough_rows(self._product, x)

    def _product(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return result


class Int8Linear(nn.Module):
    """y ≈ Wx + b in float32: W [out, in] rounded to int8 by output channels, x row by row, both symmetric about zero.

    oneDNN's fast product wants x unsigned, so it comes shifted by `ZERO`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        whole = torch.empty(weight.shape, dtype=torch.int8)
        self.scale = torch.empty(len(weight))
        for part, scale, out in zip(*(x.split(SLICE_ROWS) for x in (weight.detach(), self.scale, whole)), strict=True):
            scale.copy_(_scale(part)[:, 0])
            out.copy_((part / scale[:, None]).round())
        self.weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self.zeros, self.shift = torch.zeros(len(weight), dtype=torch.long), torch.tensor(ZERO + 0.5)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        scale = _scale(x)
        whole = torch.addcdiv(self.shift, x, scale).to(torch.uint8)  # positive, so cutting off rounds
        y = over_enough_rows(self._product, whole)
        return y * scale if self.bias is None else torch.addcmul(self.bias, y, scale)

    def _product(self, whole: Tensor) -> Tensor:
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, ZERO, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return result


def _scale(x: Tensor) -> Tensor:
    """What one whole step is worth in each row, [.., 1]; NaN where the row holds one."""
    return x.abs().amax(-1, keepdim=True).div_(LARGEST).clamp_(min=1e-30)


class PackedLoRA(nn.Module):
    """`GatedLoRA` on packed weights, in a dtype of its own."""

    learns = False

    def __init__(self, lora: GatedLoRA, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.a, self.b = PackedLinear(lora.a.to(dtype), None), PackedLinear(lora.b.to(dtype), None)

    def forward(self, x_BNI: Tensor, gate_BN1: Tensor) -> Tensor:
        inner = self.a(x_BNI.to(self.dtype)) * gate_BN1
        result: Tensor = self.b(inner.to(self.dtype)).to(x_BNI.dtype)
        return result


def pack(model: Transformer, kind: Kind = PackedLinear) -> None:
    """Replace all linear layers of a CPU network in place, where `can_pack` says that this machine has the products.

    A tied head is packed as a copy, since the embedding reads single rows. Beside int8 the adapter is in bfloat16 where
    that is possible: it is small, and half the bytes are read.
    """
    dtype = model.embedding.weight.dtype
    beside = torch.bfloat16 if kind is Int8Linear and can_pack(PackedLinear, torch.bfloat16) else dtype
    replace_products(model, kind, lambda lora: PackedLoRA(lora, beside))


def replace_products(model: Transformer, linear: Kind, lora: Callable[[GatedLoRA], nn.Module]) -> None:
    """Put other forms of its linear layers and of its adapter's updates into a network."""
    # Plain layers are not held here, so that each goes when its packed form has come.
    for module in [each for each in model.modules() if not isinstance(each, nn.Linear | GatedLoRA)]:
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, linear(child.weight, child.bias))
            elif isinstance(child, GatedLoRA):
                setattr(module, name, lora(child))
