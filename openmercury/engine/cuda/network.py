"""The network as few kernels: the CUDA form of `model.transformer`.

W and the adapter's A are stacked and read in one product; what stands between two products is one Triton kernel. For
bfloat16; float32 keeps the plain network. With s = [Wx ‖ Ax] and the gate g of each position:

    norm, [Wqkv‖A] → + bias + g·B(Ax), head norms, rotation, cache write → attention
          [Wout‖A] → residual + g·B(Ax)
    norm, [Wgate,up‖A] → + g·B(Ax), SiLU(gate)·up → [Wdown‖A] → residual + g·B(Ax) → …

Forwards without noise read only W and add no B(Ax). Up to `products.FEW` positions the norm is part of the product and
all kernels overlap; beyond, cuBLAS multiplies. The plain Transformer is the twin; `tests/engine/kernels.py` holds this
to it.
"""

from __future__ import annotations

from typing import cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from openmercury.engine.cache import PagedCache
from openmercury.engine.cuda.attention import Layout, attend
from openmercury.engine.cuda.launch import after_last_kernel, overlaps
from openmercury.engine.cuda.products import FEW, product
from openmercury.model.adapter import GatedLoRA, LayerAdapter
from openmercury.model.transformer import Layer, Transformer

MIN_DOT = 16  # tl.dot takes no smaller side
MANY = 512  # positions from which large tiles are faster (measured on an H100)


@triton.jit
def _sum_splits(stacked, row, row_ok, column, column_ok, rows, stride, SPLITS: tl.constexpr):
    """Some rows and columns of a product whose inner axis was split over SPLITS partial sums, in float32."""
    at = stacked + row[:, None] * stride + column[None, :]
    ok = row_ok[:, None] & column_ok[None, :]
    total = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(at + split * rows * stride, mask=ok, other=0.0)
    return total


@triton.jit
def _low_rank(
    stacked, b, row, row_ok, gate, column, column_ok, rows, stride, offset,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """g·B(Ax) of some rows and columns: [rows, columns] in float32. Ax stands in `stacked` from `offset` on."""
    r = tl.arange(0, RANK_PAD)
    a = _sum_splits(stacked + offset, row, row_ok, r, r < RANK, rows, stride, SPLITS)
    open_ = tl.load(gate + row, mask=row_ok, other=0) != 0
    a = tl.where(open_[:, None], a, 0.0)
    w = tl.load(b + column[:, None] * RANK + r[None, :], mask=column_ok[:, None] & (r < RANK)[None, :], other=0.0)
    return tl.dot(a.to(w.dtype), tl.trans(w), input_precision="ieee")


@triton.jit
def _norm_kernel(x, weight, out, eps, D: tl.constexpr, D_PAD: tl.constexpr, OVERLAP: tl.constexpr):
    """One program: out = RMSNorm(x) of one row."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D_PAD)
    ok = d < D
    after_last_kernel(OVERLAP)
    value = tl.load(x + row * D + d, mask=ok, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / D + eps)
    normed = value * scale * tl.load(weight + d, mask=ok, other=0.0)
    tl.store(out + row * D + d, normed.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _residual_kernel(
    x, stacked, b, gate, rows, stride,
    D: tl.constexpr, RANK: tl.constexpr, RANK_PAD: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, NOISY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """x += s[:, :D], and g·B(Ax) if NOISY, on a tile of rows and columns."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n_ok, d_ok = n < rows, d < D
    ok = n_ok[:, None] & d_ok[None, :]
    after_last_kernel(OVERLAP)
    value = tl.load(x + n[:, None] * D + d[None, :], mask=ok, other=0.0)
    total = value.to(tl.float32) + _sum_splits(stacked, n, n_ok, d, d_ok, rows, stride, SPLITS)
    if NOISY:
        total += _low_rank(stacked, b, n, n_ok, gate, d, d_ok, rows, stride, D, RANK, RANK_PAD, SPLITS)
    tl.store(x + n[:, None] * D + d[None, :], total.to(value.dtype), mask=ok)


@triton.jit
def _silu_kernel(
    stacked, b, gate, out, rows, stride,
    F: tl.constexpr, RANK: tl.constexpr, RANK_PAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    NOISY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """out = SiLU(gate half) · up half on a tile, each with its g·B(Ax) if NOISY."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    n_ok, f_ok = n < rows, f < F
    ok = n_ok[:, None] & f_ok[None, :]
    after_last_kernel(OVERLAP)
    at = stacked + n[:, None] * stride + f[None, :]
    left = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    right = tl.load(at + F, mask=ok, other=0.0).to(tl.float32)
    if NOISY:
        left += _low_rank(stacked, b, n, n_ok, gate, f, f_ok, rows, stride, 2 * F, RANK, RANK_PAD, 1)
        right += _low_rank(stacked, b, n, n_ok, gate, f + F, f_ok, rows, stride, 2 * F, RANK, RANK_PAD, 1)
    result = left / (1.0 + tl.exp(-left)) * right
    tl.store(out + n[:, None] * F + f[None, :], result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _qkv_kernel(
    stacked, bias, b, gate, q_norm, k_norm, cos, sin, position, slot, query, key, value, stored_key, stored_value,
    rows, stride, eps,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, HALF_PAD: tl.constexpr,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr, HEAD_NORM: tl.constexpr, LORA: tl.constexpr, NOISY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: one head (H of q, then G of k, then G of v) of BLOCK_N positions, as halves for the rotation."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    head = tl.program_id(1)
    e = tl.arange(0, HALF_PAD)
    HALF: tl.constexpr = E // 2
    n_ok, e_ok = n < rows, e < HALF
    ok = n_ok[:, None] & e_ok[None, :]
    column = head * E + e
    after_last_kernel(OVERLAP)
    at = stacked + n[:, None] * stride + column[None, :]
    left = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    right = tl.load(at + HALF, mask=ok, other=0.0).to(tl.float32)
    if BIAS:
        left += tl.load(bias + column, mask=e_ok, other=0.0).to(tl.float32)[None, :]
        right += tl.load(bias + column + HALF, mask=e_ok, other=0.0).to(tl.float32)[None, :]
    if LORA:
        offset = (H + 2 * G) * E
        left += _low_rank(stacked, b, n, n_ok, gate, column, e_ok, rows, stride, offset, RANK, RANK_PAD, 1)
        right += _low_rank(stacked, b, n, n_ok, gate, column + HALF, e_ok, rows, stride, offset, RANK, RANK_PAD, 1)
    if head < H + G:
        if HEAD_NORM:
            scale = 1.0 / tl.sqrt((tl.sum(left * left, 1) + tl.sum(right * right, 1)) / E + eps)
            weight = q_norm if head < H else k_norm
            left *= scale[:, None] * tl.load(weight + e, mask=e_ok, other=0.0).to(tl.float32)[None, :]
            right *= scale[:, None] * tl.load(weight + e + HALF, mask=e_ok, other=0.0).to(tl.float32)[None, :]
        angle = tl.load(position + n, mask=n_ok, other=0)[:, None] * HALF + e[None, :]
        c = tl.load(cos + angle, mask=ok, other=0.0).to(tl.float32)
        s = tl.load(sin + angle, mask=ok, other=0.0).to(tl.float32)
        first, second = left * c - right * s, right * c + left * s
    else:
        first, second = left, right
    kind = query.dtype.element_ty
    first, second = first.to(kind), second.to(kind)
    if head < H:
        to = query + n[:, None] * (H * E) + column[None, :]
        tl.store(to, first, mask=ok)
        tl.store(to + HALF, second, mask=ok)
    else:
        new, stored = key, stored_key
        group = head - H
        if head >= H + G:
            new, stored = value, stored_value
            group = head - H - G
        if NOISY:
            to = new + n[:, None] * (G * E) + group * E + e[None, :]
            tl.store(to, first, mask=ok)
            tl.store(to + HALF, second, mask=ok)
        kept = tl.load(slot + n, mask=n_ok, other=0)
        to = stored + kept[:, None] * (G * E) + group * E + e[None, :]
        tl.store(to, first, mask=ok)
        tl.store(to + HALF, second, mask=ok)


def _stack(weight: Tensor, lora: GatedLoRA | None) -> tuple[Tensor, Tensor]:
    """([W; A], B); without an adapter B is empty."""
    if lora is None:
        return weight, weight.new_empty(0, 0)
    kind = weight.dtype
    return torch.cat((weight, lora.a.to(kind))), lora.b.to(kind).contiguous()


class _FusedLayer:
    """Stacked weights of one layer. The layer's own weights become views of them, so nothing is held twice."""

    def __init__(self, layer: Layer, adapter: LayerAdapter | None) -> None:
        self.layer = layer
        pairs = []
        for name in ("qkv", "out", "gate_up", "down"):
            linear = getattr(layer, name)
            lora = None if adapter is None else getattr(adapter, name)
            stacked, b = _stack(linear.weight.data, lora)
            linear.weight.data = stacked[: len(linear.weight)]
            if lora is not None:
                lora.a.data, lora.b.data = stacked[len(linear.weight) :], b
            pairs.append((stacked, b))
        self.qkv, self.out, self.gate_up, self.down = pairs


class FusedTransformer:
    """The residual stream of a network behind its last layer, computed as above. Positions reach up to its context."""

    def __init__(self, model: Transformer, cache: PagedCache) -> None:
        self.model, self.config, self.cache = model, model.config, cache
        adapters = [None] * len(model.layers) if model.adapter is None else list(model.adapter.layers)
        self.layers = [
            _FusedLayer(cast(Layer, layer), cast(LayerAdapter | None, adapter))
            for layer, adapter in zip(model.layers, adapters, strict=True)
        ]
        weight = model.embedding.weight
        angle = torch.arange(model.config.max_context, device=weight.device)[:, None] * model.frequency.float()
        self.cos, self.sin = angle.cos().to(weight.dtype), angle.sin().to(weight.dtype)
        self.rank = 0 if model.adapter is None else self.layers[0].qkv[1].shape[1]
        self.rank_pad = max(MIN_DOT, triton.next_power_of_2(max(1, self.rank)))
        self.overlap = overlaps(weight.device)

    def __call__(self, x_ND: Tensor, layout: Layout, gate_N: Tensor | None) -> Tensor:
        """Embeddings in, x behind the last layer out (the same tensor); clean keys and values go to the cache.

        `gate_N` (int8) is 1 on noisy positions; None: there are none.
        """
        gate = gate_N if self.rank else None
        for index, fused in enumerate(self.layers):
            s = self._normed_product(x_ND, fused.layer.attention_norm.weight, fused.qkv, gate)
            query, new = self._qkv(fused, index, s, layout, gate, noisy=gate_N is not None)
            mixed = attend(self.cache, index, layout, query, new)
            self._add(x_ND, mixed.flatten(1), fused.out, gate)
            s = self._normed_product(x_ND, fused.layer.ffn_norm.weight, fused.gate_up, gate)
            self._add(x_ND, self._swiglu(s, fused.gate_up[1], gate), fused.down, gate)
        return x_ND

    def norm(self, x_ND: Tensor, weight_D: Tensor) -> Tensor:
        """RMS norm of each row."""
        n, d = x_ND.shape
        out = torch.empty_like(x_ND)
        _norm_kernel[(n,)](
            x_ND, weight_D, out, self.config.norm_eps, D=d, D_PAD=triton.next_power_of_2(d), OVERLAP=self.overlap,
            num_warps=4 if d <= 2048 else 8, launch_pdl=self.overlap,
        )  # fmt: skip
        return out

    def _matrix(self, weights: tuple[Tensor, Tensor], gate: Tensor | None) -> Tensor:
        """[W; A] where noise is about, else W."""
        stacked, b = weights
        return stacked if gate is not None or not self.rank else stacked[: len(b)]

    def _normed_product(
        self, x_ND: Tensor, norm_D: Tensor, weights: tuple[Tensor, Tensor], gate: Tensor | None
    ) -> Tensor:
        matrix = self._matrix(weights, gate)
        if len(x_ND) <= FEW:
            return product(x_ND, matrix, norm_D, self.config.norm_eps)[0]
        return torch.mm(self.norm(x_ND, norm_D), matrix.t())

    def _add(self, x_ND: Tensor, y_NI: Tensor, weights: tuple[Tensor, Tensor], gate: Tensor | None) -> None:
        """x += Wy + g·B(Ay)."""
        matrix = self._matrix(weights, gate)
        s = product(y_NI, matrix) if len(y_NI) <= FEW else torch.mm(y_NI, matrix.t())[None]
        splits, n, width = s.shape
        d = x_ND.shape[1]
        noisy = gate is not None
        block_n = MIN_DOT if n < MANY else 64
        _residual_kernel[(triton.cdiv(n, block_n), triton.cdiv(d, 64))](
            x_ND, s, weights[1], x_ND if gate is None else gate, n, width, D=d, RANK=self.rank, RANK_PAD=self.rank_pad,
            SPLITS=splits, BLOCK_N=block_n, BLOCK_D=64, NOISY=noisy, OVERLAP=self.overlap,
            num_warps=4, launch_pdl=self.overlap,
        )  # fmt: skip

    def _swiglu(self, s: Tensor, b: Tensor, gate: Tensor | None) -> Tensor:
        n, f = len(s), self.config.d_ffn
        out = torch.empty(n, f, dtype=s.dtype, device=s.device)
        noisy = gate is not None
        block_n, block_f = 1, 512
        if noisy:
            block_n, block_f = MIN_DOT if n < 64 else 64, 32 if n < MANY else 64
        _silu_kernel[(triton.cdiv(n, block_n), triton.cdiv(f, block_f))](
            s, b, s if gate is None else gate, out, n, s.stride(0), F=f, RANK=self.rank, RANK_PAD=self.rank_pad,
            BLOCK_N=block_n, BLOCK_F=block_f, NOISY=noisy, OVERLAP=self.overlap, num_warps=4, launch_pdl=self.overlap,
        )  # fmt: skip
        return out

    def _qkv(
        self, fused: _FusedLayer, index: int, s: Tensor, layout: Layout, gate: Tensor | None, *, noisy: bool
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Queries [N, H, E], and keys and values [N, G, E] where noisy positions will ask for them."""
        config, layer = self.config, fused.layer
        n, h, g, e = len(s), config.n_heads, config.n_kv_heads, config.head_size
        query = torch.empty(n, h, e, dtype=s.dtype, device=s.device)
        # Without noise nobody reads the forward's own keys: they are in the cache.
        key, value = torch.empty(2, n if noisy else 0, g, e, dtype=s.dtype, device=s.device)
        bias: Tensor | None = layer.qkv.bias
        head_norm = config.qk_norm
        block_n = MIN_DOT if noisy else 1
        _qkv_kernel[(triton.cdiv(n, block_n), h + 2 * g)](
            s, s if bias is None else bias, fused.qkv[1], s if gate is None else gate,
            layer.q_norm.weight if head_norm else s, layer.k_norm.weight if head_norm else s,
            self.cos, self.sin, layout.position_N, layout.slot_N, query, key, value,
            self.cache.key[index], self.cache.value[index], n, s.stride(0), config.norm_eps,
            H=h, G=g, E=e, HALF_PAD=max(MIN_DOT, triton.next_power_of_2(e // 2)), BLOCK_N=block_n,
            BIAS=bias is not None, HEAD_NORM=head_norm, LORA=gate is not None, NOISY=noisy,
            RANK=self.rank, RANK_PAD=self.rank_pad, OVERLAP=self.overlap, num_warps=4, launch_pdl=self.overlap,
        )  # fmt: skip
        return query, (key, value) if noisy else None
