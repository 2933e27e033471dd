"""Matrix products of few positions: y = x·Wᵀ, bound by the reading of W.

A product this small would keep few processors busy, so the inner axis is split over programs; their partial sums are
added by whichever kernel reads them next, always in the same order. More positions than `FEW` go to cuBLAS.

W may be held in e4m3 (`model.float8`): it is widened on its way to the tensor cores and its rows' scales are applied to
the sums, so what reads them need not know. cuBLAS gets it widened in memory, which arithmetic outweighs there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from openmercury.engine.cuda.launch import after_last_kernel, overlaps
from openmercury.model.float8 import Float8Linear

FEW = 128  # positions up to which reading W, not arithmetic, bounds a product


class Matrix(NamedTuple):
    """W [outputs, inner], and the scale of each row (float32) where W is in e4m3."""

    weight_OI: Tensor
    scale_O: Tensor | None = None

    @classmethod
    def of(cls, linear: nn.Linear | Float8Linear) -> Matrix:
        """The weights of a layer."""
        return cls(linear.weight, linear.scale) if isinstance(linear, Float8Linear) else cls(linear.weight.data)

    def first(self, rows: int) -> Matrix:
        """Its first rows."""
        return Matrix(self.weight_OI[:rows], None if self.scale_O is None else self.scale_O[:rows])


class Tiles(NamedTuple):
    """Rows of x, rows of W and inner axis of a program; programs that share an inner axis (a power of 2)."""

    m: int
    n: int
    k: int
    splits: int = 1
    warps: int = 4
    stages: int = 4


def tiles_for(positions: int, outputs: int, inner: int, itemsize: int) -> Tiles:
    """For [positions, inner] · [outputs, inner]ᵀ, with weights of 2 or 4 bytes (`itemsize`) as measured on an H100 at
    the sizes of a 0.5B and a 7B network; those of one byte take tiles of as many bytes where the inner axis is whole.
    """
    t = _tiles_of_halves(positions, outputs, inner)
    return t._replace(k=2 * t.k, stages=min(t.stages, 4)) if itemsize == 1 and t.splits == 1 else t


def _tiles_of_halves(positions: int, outputs: int, inner: int) -> Tiles:
    m = max(16, min(64, triton.next_power_of_2(positions)))
    many = positions > 64
    if outputs >= 16384:
        return Tiles(m, 64, 64 if m == 64 else 128)
    if outputs >= 8192:
        return Tiles(m, 64, 64) if many else Tiles(m, 32, 64 if m == 64 else 128, stages=6)
    if outputs >= 2048:
        return Tiles(m, 64, 64, 4, stages=5)
    if inner >= 4096:
        return Tiles(m, 64, 128, 8, stages=3) if many else Tiles(m, 32, 128, 8)
    return Tiles(m, 32, 64, 2, stages=5) if many else Tiles(m, 32, 256, 4, stages=3)


@triton.jit
def _product_kernel(
    x, weight, scale, out, rows, outputs, K: tl.constexpr, SPLITS: tl.constexpr, SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M positions × BLOCK_N outputs over one run of the inner axis → out [SPLITS, rows, outputs]."""
    n0, split = tl.program_id(1) * BLOCK_N, tl.program_id(2)
    run: tl.constexpr = (K + SPLITS * BLOCK_K - 1) // (SPLITS * BLOCK_K) * BLOCK_K
    begin = split * run
    stop = tl.minimum(begin + run, K)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (n0 + tl.arange(0, BLOCK_N)).to(tl.int64)
    m_ok, n_ok = m < rows, n < outputs
    if SCALED:
        worth = tl.load(scale + n, mask=n_ok, other=0.0)
    if run <= BLOCK_K:  # then W can be asked for before x is there
        k = begin + tl.arange(0, BLOCK_K)
        k_ok = k < stop
        w = tl.load(weight + n[:, None] * K + k[None, :], mask=n_ok[:, None] & k_ok[None, :], other=0.0)
        after_last_kernel(OVERLAP)
        a = tl.load(x + m[:, None] * K + k[None, :], mask=m_ok[:, None] & k_ok[None, :], other=0.0)
        acc = tl.dot(a, tl.trans(w.to(a.dtype)), input_precision="ieee")
    else:
        after_last_kernel(OVERLAP)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k0 in range(begin, stop, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            k_ok = k < stop
            w = tl.load(weight + n[:, None] * K + k[None, :], mask=n_ok[:, None] & k_ok[None, :], other=0.0)
            a = tl.load(x + m[:, None] * K + k[None, :], mask=m_ok[:, None] & k_ok[None, :], other=0.0)
            acc += tl.dot(a, tl.trans(w.to(a.dtype)), input_precision="ieee")
    if SCALED:
        acc *= worth[None, :]
    at = (split.to(tl.int64) * rows + m[:, None]) * outputs + n[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=m_ok[:, None] & n_ok[None, :])


def product(x_NI: Tensor, matrix: Matrix, tiles: Tiles | None = None) -> Tensor:
    """x·Wᵀ as [splits, N, outputs]: in the dtype of x if splits = 1, else float32 sums still to be added."""
    positions, inner = x_NI.shape
    weight, scale = matrix
    outputs = len(weight)
    if positions > FEW and tiles is None:
        y = torch.mm(x_NI, weight.to(x_NI.dtype).t())
        return (y if scale is None else y.mul_(scale))[None]
    t = tiles or tiles_for(positions, outputs, inner, weight.itemsize)
    kind = x_NI.dtype if t.splits == 1 else torch.float32
    out = torch.empty(t.splits, positions, outputs, dtype=kind, device=x_NI.device)
    overlap = overlaps(x_NI.device)
    _product_kernel[(triton.cdiv(positions, t.m), triton.cdiv(outputs, t.n), t.splits)](
        x_NI, weight, out if scale is None else scale, out, positions, outputs,
        K=inner, SPLITS=t.splits, SCALED=scale is not None, BLOCK_M=t.m, BLOCK_N=t.n, BLOCK_K=t.k, OVERLAP=overlap,
        num_warps=t.warps, num_stages=t.stages, launch_pdl=overlap,
    )  # fmt: skip
    return out
