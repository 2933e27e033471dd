"""The network as few kernels: the CUDA form of `model.transformer`.

W and the adapter's A are stacked and read in one product; what stands between two products is one Triton kernel. For
bfloat16; float32 keeps the plain network. With s = [Wx ‖ Ax] and the gate g of each position:

    [Wqkv‖A] → + bias + g·B(Ax), head norms, rotation, cache write → attention
    [Wout‖A] → residual + g·B(Ax)
    [Wgate,up‖A] → + g·B(Ax), SiLU(gate)·up
    [Wdown‖A] → residual + g·B(Ax) → …

An RMS norm in front of a product is split in two: its weights are folded into the columns of W and A once, and its
scale 1/rms(x), a factor of each row, is applied behind the product, from sums of squares that the residual kernel
leaves. Forwards without noise read only W and add no B(Ax). The plain Transformer is the twin;
`tests/engine/kernels.py` holds this to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from openmercury.engine.cache import PagedCache
from openmercury.engine.cuda.attention import Layout, attend
from openmercury.engine.cuda.launch import after_last_kernel, overlaps, pad
from openmercury.engine.cuda.products import Matrix, product
from openmercury.model.adapter import GatedLoRA, LayerAdapter
from openmercury.model.float8 import Float8Linear, Float8LoRA
from openmercury.model.transformer import Layer, Transformer, fold_norms

MIN_DOT = 16  # tl.dot takes no smaller side
MANY = 512  # positions from which large tiles are faster (measured on an H100)


@triton.jit
def _sum_splits(stacked, row, row_ok, column, column_ok, rows, stride, SPLITS: tl.constexpr):
    """Some rows and columns of a product whose inner axis was split over SPLITS partial sums, in float32.

    All parts are asked for at once; along the last axis they land in one thread, which sums them before any exchange.
    """
    at = stacked + row[:, None] * stride + column[None, :]
    ok = row_ok[:, None] & column_ok[None, :]
    split = tl.arange(0, SPLITS)[None, None, :]
    return tl.sum(tl.load(at[:, :, None] + split * rows * stride, mask=ok[:, :, None], other=0.0).to(tl.float32), 2)


@triton.jit
def _load_b(b, column, column_ok, RANK: tl.constexpr, RANK_PAD: tl.constexpr):
    """Some rows of B; asked for before the kernels that make Ax are done."""
    r = tl.arange(0, RANK_PAD)
    return tl.load(b + column[:, None] * RANK + r[None, :], mask=column_ok[:, None] & (r < RANK)[None, :], other=0.0)


@triton.jit
def _gated_a(
    stacked, row, row_ok, noisy, rows, stride, offset, RANK: tl.constexpr, RANK_PAD: tl.constexpr, SPLITS: tl.constexpr
):
    """g·Ax of some rows, in float32. Ax stands in `stacked` from `offset` on."""
    r = tl.arange(0, RANK_PAD)
    a = _sum_splits(stacked + offset, row, row_ok, r, r < RANK, rows, stride, SPLITS)
    return tl.where(noisy[:, None], a, 0.0)


@triton.jit
def _low_rank(a, b):
    """B(Ax) of some rows and of the columns that `b` holds, in float32."""
    return tl.dot(a.to(b.dtype), tl.trans(b), input_precision="ieee")


@triton.jit
def _rms_scale(square, row, row_ok, tiles, eps, D: tl.constexpr, TILES_PAD: tl.constexpr):
    """1 / rms(x) of some rows, from the sums of squares of their tiles."""
    t = tl.arange(0, TILES_PAD)
    parts = tl.load(square + row[:, None] * tiles + t[None, :], mask=row_ok[:, None] & (t < tiles)[None, :], other=0.0)
    return 1.0 / tl.sqrt(tl.sum(parts, 1) / D + eps)


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
    x, square, stacked, b, gate, rows, stride,
    D: tl.constexpr, RANK: tl.constexpr, RANK_PAD: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, LORA: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """x += s[:, :D] + g·B(Ax) on a tile of rows and columns, and the sum of squares of each row there."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n_ok, d_ok = n < rows, d < D
    ok = n_ok[:, None] & d_ok[None, :]
    value = tl.load(x + n[:, None] * D + d[None, :], mask=ok, other=0.0)
    if LORA:
        rows_of_b = _load_b(b, d, d_ok, RANK, RANK_PAD)
        noisy = tl.load(gate + n, mask=n_ok, other=0) != 0
    after_last_kernel(OVERLAP)
    total = value.to(tl.float32) + _sum_splits(stacked, n, n_ok, d, d_ok, rows, stride, SPLITS)
    if LORA:
        total += _low_rank(_gated_a(stacked, n, n_ok, noisy, rows, stride, D, RANK, RANK_PAD, SPLITS), rows_of_b)
    new = total.to(value.dtype)
    tl.store(x + n[:, None] * D + d[None, :], new, mask=ok)
    wide = tl.where(ok, new.to(tl.float32), 0.0)
    tl.store(square + n * tl.num_programs(1) + tl.program_id(1), tl.sum(wide * wide, 1), mask=n_ok)


@triton.jit
def _silu_kernel(
    stacked, square, b, gate, out, rows, stride, tiles, eps,
    D: tl.constexpr, F: tl.constexpr, RANK: tl.constexpr, RANK_PAD: tl.constexpr, SPLITS: tl.constexpr,
    TILES_PAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, LORA: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """out = SiLU(gate half) · up half on a tile, each scaled by the norm and with its g·B(Ax)."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    n_ok, f_ok = n < rows, f < F
    ok = n_ok[:, None] & f_ok[None, :]
    if LORA:
        left_b = _load_b(b, f, f_ok, RANK, RANK_PAD)
        right_b = _load_b(b, f + F, f_ok, RANK, RANK_PAD)
        noisy = tl.load(gate + n, mask=n_ok, other=0) != 0
    scale = _rms_scale(square, n, n_ok, tiles, eps, D, TILES_PAD)[:, None]
    after_last_kernel(OVERLAP)
    left = _sum_splits(stacked, n, n_ok, f, f_ok, rows, stride, SPLITS)
    right = _sum_splits(stacked, n, n_ok, f + F, f_ok, rows, stride, SPLITS)
    if LORA:
        a = _gated_a(stacked, n, n_ok, noisy, rows, stride, 2 * F, RANK, RANK_PAD, SPLITS)
        left += _low_rank(a, left_b)
        right += _low_rank(a, right_b)
    left *= scale
    result = left / (1.0 + tl.exp(-left)) * (right * scale)
    tl.store(out + n[:, None] * F + f[None, :], result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _halves(x, ROWS: tl.constexpr, E: tl.constexpr):
    """The left and the right half of the columns of x [ROWS, E]."""
    return tl.split(tl.permute(tl.reshape(x, [ROWS, 2, E // 2]), [0, 2, 1]))


@triton.jit
def _qkv_kernel(
    stacked, square, bias, b, gate, q_norm, k_norm, cos, sin, position, slot, query, key, value,
    stored_key, stored_value, rows, stride, tiles, eps,
    D: tl.constexpr, H: tl.constexpr, G: tl.constexpr, E: tl.constexpr,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, SPLITS: tl.constexpr, TILES_PAD: tl.constexpr, BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr, HEAD_NORM: tl.constexpr, LORA: tl.constexpr, NOISY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: one head (H of q, then G of k, then G of v) of BLOCK_N positions."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    head = tl.program_id(1)
    HALF: tl.constexpr = E // 2
    e, half = tl.arange(0, E), tl.arange(0, HALF)
    n_ok = n < rows
    every = head * E + e
    rotated = head < H + G
    if LORA:
        rows_of_b = _load_b(b, every, e < E, RANK, RANK_PAD)
        noisy = tl.load(gate + n, mask=n_ok, other=0) != 0
    scale = _rms_scale(square, n, n_ok, tiles, eps, D, TILES_PAD)[:, None]
    angle = tl.load(position + n, mask=n_ok, other=0)[:, None] * HALF + half[None, :]
    c = tl.load(cos + angle, mask=n_ok[:, None] & rotated, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=n_ok[:, None] & rotated, other=0.0).to(tl.float32)
    kept = tl.load(slot + n, mask=n_ok, other=0)
    after_last_kernel(OVERLAP)
    x = _sum_splits(stacked, n, n_ok, every, e < E, rows, stride, SPLITS)
    if LORA:
        offset = (H + 2 * G) * E
        x += _low_rank(_gated_a(stacked, n, n_ok, noisy, rows, stride, offset, RANK, RANK_PAD, SPLITS), rows_of_b)
    x *= scale
    if BIAS:
        x += tl.load(bias + every).to(tl.float32)[None, :]
    if HEAD_NORM:
        weight = tl.load((q_norm if head < H else k_norm) + e).to(tl.float32)
        normed = x * (1.0 / tl.sqrt(tl.sum(x * x, 1) / E + eps))[:, None] * weight[None, :]
        x = tl.where(rotated, normed, x)
    left, right = _halves(x, BLOCK_N, E)
    first = (left * c - right * s).to(query.dtype.element_ty)
    second = (right * c + left * s).to(query.dtype.element_ty)
    if head < H:
        to = query + n[:, None] * (H * E) + head * E + half[None, :]
        tl.store(to, first, mask=n_ok[:, None])
        tl.store(to + HALF, second, mask=n_ok[:, None])
    else:
        new, stored = key, stored_key
        group = head - H
        if head >= H + G:
            new, stored = value, stored_value
            group = head - H - G
        if NOISY:
            to = new + n[:, None] * (G * E) + group * E + half[None, :]
            tl.store(to, first, mask=n_ok[:, None])
            tl.store(to + HALF, second, mask=n_ok[:, None])
        to = stored + kept[:, None] * (G * E) + group * E + half[None, :]
        tl.store(to, first, mask=n_ok[:, None])
        tl.store(to + HALF, second, mask=n_ok[:, None])


class _FusedLayer:
    """Stacked weights [W; A] and B of one layer."""

    def __init__(self, layer: Layer, adapter: LayerAdapter | None) -> None:
        self.layer = layer
        self.qkv, self.out, self.gate_up, self.down = (
            _stack(getattr(layer, name), None if adapter is None else getattr(adapter, name))
            for name in ("qkv", "out", "gate_up", "down")
        )


def _stack(linear: nn.Linear | Float8Linear, lora: GatedLoRA | Float8LoRA | None) -> tuple[Matrix, Tensor]:
    """[W; A] and B; the layer's own W, A and B become parts of them, so nothing is held twice."""
    outputs = len(linear.weight)
    if lora is None:
        return Matrix.of(linear), linear.weight.new_empty(0, 0)
    if isinstance(linear, Float8Linear):
        assert isinstance(lora, Float8LoRA)
        stacked = Matrix(torch.cat((linear.weight, lora.a.weight)), torch.cat((linear.scale, lora.a.scale)))
        linear.weight, lora.a.weight = stacked.weight_OI.split((outputs, len(lora.a.weight)))
        return stacked, lora.b
    assert isinstance(lora, GatedLoRA)
    stacked = Matrix(torch.cat((linear.weight.data, lora.a.to(linear.weight.dtype))))
    linear.weight.data, lora.a.data = stacked.weight_OI.split((outputs, len(lora.a)))
    lora.b.data = lora.b.to(linear.weight.dtype).contiguous()
    return stacked, lora.b.data


class Stream(NamedTuple):
    """The residual stream: x [N, D], and its sums of squares by tiles of `block_d` columns, [N, tiles] float32."""

    x_ND: Tensor
    square_NT: Tensor

    @property
    def tiles_pad(self) -> int:
        """The tiles of a row, padded."""
        return pad(self.square_NT.shape[1])


def block_d(positions: int) -> int:
    """Columns of the residual stream that one program adds to."""
    return 32 if positions < MANY else 64


class FusedTransformer:
    """The residual stream of a network behind its last layer, computed as above. Positions reach up to its context."""

    def __init__(self, model: Transformer, cache: PagedCache) -> None:
        self.model, self.config, self.cache = model, model.config, cache
        if not isinstance(model.head, Float8Linear):  # whose norms were folded before it was rounded
            fold_norms(model)
        adapters = [None] * len(model.layers) if model.adapter is None else list(model.adapter.layers)
        self.layers = [
            _FusedLayer(cast(Layer, layer), cast(LayerAdapter | None, adapter))
            for layer, adapter in zip(model.layers, adapters, strict=True)
        ]
        weight = model.embedding.weight
        angle = torch.arange(model.config.max_context, device=weight.device)[:, None] * model.frequency.float()
        self.cos, self.sin = ((wave * model.sharpen).to(weight.dtype) for wave in (angle.cos(), angle.sin()))
        self.rank = 0 if model.adapter is None else self.layers[0].qkv[1].shape[1]
        self.rank_pad = max(MIN_DOT, triton.next_power_of_2(max(1, self.rank)))
        self.overlap = overlaps(weight.device)

    def __call__(self, stream: Stream, layout: Layout, gate_N: Tensor | None) -> Tensor:
        """Embeddings in, x [N, D] behind the last layer out; clean keys and values go to the cache.

        `gate_N` (int8) is 1 on noisy positions; None: there are none.
        """
        gate = gate_N if self.rank else None
        for index, fused in enumerate(self.layers):
            s = product(stream.x_ND, self._matrix(fused.qkv, gate))
            query, new = self._qkv(fused, index, s, stream, layout, gate, noisy=gate_N is not None)
            mixed = attend(self.cache, index, layout, query, new)
            self._add(stream, mixed.flatten(1), fused.out, gate)
            s = product(stream.x_ND, self._matrix(fused.gate_up, gate))
            self._add(stream, self._swiglu(s, stream, fused.gate_up[1], gate), fused.down, gate)
        return stream.x_ND

    def norm(self, x_ND: Tensor, weight_D: Tensor) -> Tensor:
        """RMS norm of each row."""
        n, d = x_ND.shape
        out = torch.empty_like(x_ND)
        _norm_kernel[(n,)](
            x_ND, weight_D, out, self.config.norm_eps, D=d, D_PAD=triton.next_power_of_2(d), OVERLAP=self.overlap,
            num_warps=4 if d <= 2048 else 8, launch_pdl=self.overlap,
        )  # fmt: skip
        return out

    def _matrix(self, weights: tuple[Matrix, Tensor], gate: Tensor | None) -> Matrix:
        """[W; A] where noise is about, else W."""
        stacked, b = weights
        return stacked if gate is not None or not self.rank else stacked.first(len(b))

    def _common(self, s: Tensor) -> dict[str, Any]:
        """Arguments that all kernels behind a product take."""
        return {
            "D": self.config.d_model, "RANK": self.rank, "RANK_PAD": self.rank_pad, "SPLITS": len(s),
            "OVERLAP": self.overlap, "num_warps": 4, "launch_pdl": self.overlap,
        }  # fmt: skip

    def _add(self, stream: Stream, y_NI: Tensor, weights: tuple[Matrix, Tensor], gate: Tensor | None) -> None:
        """x += Wy + g·B(Ay)."""
        x, s = stream.x_ND, product(y_NI, self._matrix(weights, gate))
        (n, d), wide = x.shape, block_d(len(x))
        block_n = MIN_DOT if n < MANY else 64
        _residual_kernel[(triton.cdiv(n, block_n), triton.cdiv(d, wide))](
            x, stream.square_NT, s, weights[1], x if gate is None else gate, n, s.shape[2],
            BLOCK_N=block_n, BLOCK_D=wide, LORA=gate is not None, **self._common(s),
        )  # fmt: skip

    def _swiglu(self, s: Tensor, stream: Stream, b: Tensor, gate: Tensor | None) -> Tensor:
        n, f = s.shape[1], self.config.d_ffn
        out = torch.empty(n, f, dtype=stream.x_ND.dtype, device=s.device)
        block_n, block_f = 1, 512
        if gate is not None:
            block_n, block_f = MIN_DOT if n < 64 else 64, 32 if n < MANY else 64
        _silu_kernel[(triton.cdiv(n, block_n), triton.cdiv(f, block_f))](
            s, stream.square_NT, b, s if gate is None else gate, out, n, s.shape[2], stream.square_NT.shape[1],
            self.config.norm_eps, F=f, BLOCK_N=block_n, BLOCK_F=block_f, LORA=gate is not None,
            TILES_PAD=stream.tiles_pad, **self._common(s),
        )  # fmt: skip
        return out

    def _qkv(
        self, fused: _FusedLayer, index: int, s: Tensor, stream: Stream, layout: Layout, gate: Tensor | None,
        *, noisy: bool,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:  # fmt: skip
        """Queries [N, H, E], and keys and values [N, G, E] where noisy positions will ask for them."""
        config, layer, kind = self.config, fused.layer, stream.x_ND.dtype
        n, h, g, e = s.shape[1], config.n_heads, config.n_kv_heads, config.head_size
        query = torch.empty(n, h, e, dtype=kind, device=s.device)
        # Without noise nobody reads the forward's own keys: they are in the cache.
        key, value = torch.empty(2, n if noisy else 0, g, e, dtype=kind, device=s.device)
        bias: Tensor | None = layer.qkv.bias
        head_norm = config.qk_norm
        block_n = MIN_DOT if noisy else 1
        _qkv_kernel[(triton.cdiv(n, block_n), h + 2 * g)](
            s, stream.square_NT, s if bias is None else bias, fused.qkv[1], s if gate is None else gate,
            layer.q_norm.weight if head_norm else s, layer.k_norm.weight if head_norm else s,
            self.cos, self.sin, layout.position_N, layout.slot_N, query, key, value,
            self.cache.key[index], self.cache.value[index], n, s.shape[2], stream.square_NT.shape[1], config.norm_eps,
            H=h, G=g, E=e, BLOCK_N=block_n, TILES_PAD=stream.tiles_pad,
            BIAS=bias is not None, HEAD_NORM=head_norm, LORA=gate is not None, NOISY=noisy, **self._common(s),
        )  # fmt: skip
        return query, (key, value) if noisy else None
