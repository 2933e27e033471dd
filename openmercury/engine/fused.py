"""The network as few kernels: the CUDA form of `model.transformer`, for forwards of few positions.

On one GPU a small forward is bound by the number of kernels and by reading the weights. So W and the adapter's A are
stacked and read in one product, and everything between two products is one Triton kernel (two where a norm needs the
whole row first). For bfloat16; float32 keeps the plain network. With s = [Wx ‖ Ax] and the gate g of each position:

    norm → [Wqkv‖A] → + bias + g·B(Ax), head norms, rotation, cache write → attention
         → [Wout‖A] → residual + g·B(Ax) → norm → [Wgate,up‖A] → + g·B(Ax), SiLU(gate)·up → [Wdown‖A] → …

On forwards without noise only W is read and the residual is added inside the norm. The plain Transformer is the twin;
`tests/engine/kernels.py` holds this to it.
"""

from __future__ import annotations

from typing import cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from openmercury.engine.kernels import PagedAttend
from openmercury.model.adapter import GatedLoRA, LayerAdapter
from openmercury.model.transformer import Layer, Transformer

MIN_DOT = 16  # tl.dot takes no smaller side
MANY = 512  # positions from which large tiles are faster (measured on an H100)


@triton.jit
def _low_rank(
    stacked, b, row, row_ok, gate, column, column_ok, stride, offset,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr,
):  # fmt: skip
    """g·B(Ax) of some rows and columns: [rows, columns] in float32. Ax stands in `stacked` from `offset` on."""
    r = tl.arange(0, RANK_PAD)
    a = tl.load(
        stacked + row[:, None] * stride + offset + r[None, :], mask=row_ok[:, None] & (r < RANK)[None, :], other=0.0
    )
    open_ = tl.load(gate + row, mask=row_ok, other=0) != 0
    a = tl.where(open_[:, None], a, 0.0)
    w = tl.load(b + column[:, None] * RANK + r[None, :], mask=column_ok[:, None] & (r < RANK)[None, :], other=0.0)
    return tl.dot(a.to(w.dtype), tl.trans(w), input_precision="ieee")


@triton.jit
def _norm_kernel(
    x, delta, weight, out, eps, delta_stride, D: tl.constexpr, D_PAD: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """One program: one row. x += delta if ADD; out = RMSNorm(x)."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D_PAD)
    ok = d < D
    value = tl.load(x + row * D + d, mask=ok, other=0.0)
    if ADD:
        value = (value.to(tl.float32) + tl.load(delta + row * delta_stride + d, mask=ok, other=0.0)).to(value.dtype)
        tl.store(x + row * D + d, value, mask=ok)
    wide = value.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / D + eps)
    normed = wide * scale * tl.load(weight + d, mask=ok, other=0.0)
    tl.store(out + row * D + d, normed.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _residual_kernel(
    x, stacked, b, gate, rows, stride,
    D: tl.constexpr, RANK: tl.constexpr, RANK_PAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """x += s[:, :D] + g·B(Ax) on a tile of rows and columns."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    n_ok, d_ok = n < rows, d < D
    ok = n_ok[:, None] & d_ok[None, :]
    value = tl.load(x + n[:, None] * D + d[None, :], mask=ok, other=0.0)
    total = value.to(tl.float32) + tl.load(stacked + n[:, None] * stride + d[None, :], mask=ok, other=0.0)
    total += _low_rank(stacked, b, n, n_ok, gate, d, d_ok, stride, D, RANK, RANK_PAD)
    tl.store(x + n[:, None] * D + d[None, :], total.to(value.dtype), mask=ok)


@triton.jit
def _silu_kernel(
    stacked, b, gate, out, rows, stride,
    F: tl.constexpr, RANK: tl.constexpr, RANK_PAD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    NOISY: tl.constexpr,
):  # fmt: skip
    """out = SiLU(gate half) · up half on a tile, each with its g·B(Ax) if NOISY."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    n_ok, f_ok = n < rows, f < F
    ok = n_ok[:, None] & f_ok[None, :]
    at = stacked + n[:, None] * stride + f[None, :]
    left = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    right = tl.load(at + F, mask=ok, other=0.0).to(tl.float32)
    if NOISY:
        left += _low_rank(stacked, b, n, n_ok, gate, f, f_ok, stride, 2 * F, RANK, RANK_PAD)
        right += _low_rank(stacked, b, n, n_ok, gate, f + F, f_ok, stride, 2 * F, RANK, RANK_PAD)
    result = left / (1.0 + tl.exp(-left)) * right
    tl.store(out + n[:, None] * F + f[None, :], result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def _qkv_kernel(
    stacked, bias, b, gate, q_norm, k_norm, cos, sin, position, slot, query, key, value, stored_key, stored_value,
    rows, stride, eps,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, HALF_PAD: tl.constexpr,
    RANK: tl.constexpr, RANK_PAD: tl.constexpr, BLOCK_N: tl.constexpr,
    BIAS: tl.constexpr, HEAD_NORM: tl.constexpr, NOISY: tl.constexpr,
):  # fmt: skip
    """One program: one head (H of q, then G of k, then G of v) of BLOCK_N positions, as halves for the rotation."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    head = tl.program_id(1)
    e = tl.arange(0, HALF_PAD)
    HALF: tl.constexpr = E // 2
    n_ok, e_ok = n < rows, e < HALF
    ok = n_ok[:, None] & e_ok[None, :]
    column = head * E + e
    at = stacked + n[:, None] * stride + column[None, :]
    left = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    right = tl.load(at + HALF, mask=ok, other=0.0).to(tl.float32)
    if BIAS:
        left += tl.load(bias + column, mask=e_ok, other=0.0).to(tl.float32)[None, :]
        right += tl.load(bias + column + HALF, mask=e_ok, other=0.0).to(tl.float32)[None, :]
    if NOISY:
        offset = (H + 2 * G) * E
        left += _low_rank(stacked, b, n, n_ok, gate, column, e_ok, stride, offset, RANK, RANK_PAD)
        right += _low_rank(stacked, b, n, n_ok, gate, column + HALF, e_ok, stride, offset, RANK, RANK_PAD)
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
    """Hidden states of a network, computed as above. Positions reach up to the model's context."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.config = model, model.config
        adapters = [None] * len(model.layers) if model.adapter is None else list(model.adapter.layers)
        self.layers = [
            _FusedLayer(cast(Layer, layer), cast(LayerAdapter | None, adapter))
            for layer, adapter in zip(model.layers, adapters, strict=True)
        ]
        weight = model.embedding.weight
        angle = torch.arange(model.config.max_context, device=weight.device)[:, None] * model.frequency.float()
        self.cos, self.sin = angle.cos().to(weight.dtype), angle.sin().to(weight.dtype)
        self.rank = 0 if model.adapter is None else self.layers[0].qkv[1].shape[1]

    def __call__(self, ids_RQ: Tensor, position_RQ: Tensor, attend: PagedAttend, noisy_RQ: Tensor | None) -> Tensor:
        """Hidden states [R, Q, D] after the last norm; writes the clean positions' keys and values to the cache."""
        config, model = self.config, self.model
        x = model.embed(ids_RQ, noisy_RQ).flatten(0, 1)
        noisy = noisy_RQ is not None and self.rank > 0
        gate = x if noisy_RQ is None else noisy_RQ.flatten().to(torch.int8)
        position = position_RQ.flatten().clamp(max=config.max_context - 1)
        slot = attend.slot_RQ.flatten()
        rows, queries, e = *ids_RQ.shape, config.head_size
        delta: Tensor | None = None
        for index, fused in enumerate(self.layers):
            layer = fused.layer
            h = self._norm(x, layer.attention_norm.weight, delta)
            query, key, value = self._qkv(fused, index, h, gate, position, slot, attend, noisy)
            q_RQHE = query.view(rows, queries, -1, e)
            new = (key.view(rows, queries, -1, e), value.view(rows, queries, -1, e)) if noisy else None
            mixed = attend.read(index, q_RQHE, new)
            delta = self._add(x, mixed.view(len(x), -1), fused.out, gate, noisy)
            h = self._norm(x, layer.ffn_norm.weight, delta)
            delta = self._add(x, self._swiglu(h, fused.gate_up, gate, noisy), fused.down, gate, noisy)
        return self._norm(x, model.norm.weight, delta).view(*ids_RQ.shape, -1)

    def _norm(self, x_ND: Tensor, weight_D: Tensor, delta_ND: Tensor | None) -> Tensor:
        n, d = x_ND.shape
        out = torch.empty_like(x_ND)
        add = delta_ND is not None
        _norm_kernel[(n,)](
            x_ND, delta_ND if add else x_ND, weight_D, out, self.config.norm_eps, d,
            D=d, D_PAD=triton.next_power_of_2(d), ADD=add, num_warps=4 if d <= 2048 else 8,
        )  # fmt: skip
        return out

    def _product(self, x_NI: Tensor, stacked: Tensor, b: Tensor, noisy: bool) -> Tensor:
        """[Wx ‖ Ax] where noise is about, else Wx."""
        return torch.mm(x_NI, (stacked if noisy or not self.rank else stacked[: len(b)]).t())

    def _ranks(self) -> dict[str, int]:
        return {"RANK": self.rank, "RANK_PAD": max(MIN_DOT, triton.next_power_of_2(max(1, self.rank)))}

    def _add(
        self, x_ND: Tensor, y_NI: Tensor, weights: tuple[Tensor, Tensor], gate: Tensor, noisy: bool
    ) -> Tensor | None:
        """Project y; with noise add it to x here, else return it for the next norm to add."""
        stacked, b = weights
        s = self._product(y_NI, stacked, b, noisy)
        if not noisy:
            return s
        n, d = x_ND.shape
        block_n = MIN_DOT if n < MANY else 64
        _residual_kernel[(triton.cdiv(n, block_n), triton.cdiv(d, 64))](
            x_ND, s, b, gate, n, s.stride(0), D=d, BLOCK_N=block_n, BLOCK_D=64, **self._ranks(), num_warps=4
        )
        return None

    def _swiglu(self, h_ND: Tensor, weights: tuple[Tensor, Tensor], gate: Tensor, noisy: bool) -> Tensor:
        stacked, b = weights
        s = self._product(h_ND, stacked, b, noisy)
        n, f = len(h_ND), self.config.d_ffn
        out = torch.empty(n, f, dtype=h_ND.dtype, device=h_ND.device)
        block_n, block_f = 1, 512
        if noisy:
            block_n, block_f = MIN_DOT if n < 64 else 64, 32 if n < MANY else 64
        _silu_kernel[(triton.cdiv(n, block_n), triton.cdiv(f, block_f))](
            s, b, gate, out, n, s.stride(0), F=f, BLOCK_N=block_n, BLOCK_F=block_f, NOISY=noisy, **self._ranks(),
            num_warps=4,
        )  # fmt: skip
        return out

    def _qkv(
        self, fused: _FusedLayer, index: int, h_ND: Tensor, gate: Tensor, position: Tensor, slot: Tensor,
        attend: PagedAttend, noisy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        config, layer = self.config, fused.layer
        stacked, b = fused.qkv
        s = self._product(h_ND, stacked, b, noisy)
        n, h, g, e = len(h_ND), config.n_heads, config.n_kv_heads, config.head_size
        query = torch.empty(n, h * e, dtype=h_ND.dtype, device=h_ND.device)
        # Without noise nobody reads the forward's own keys: they are in the cache.
        key, value = torch.empty(2, n if noisy else 0, g * e, dtype=h_ND.dtype, device=h_ND.device)
        bias: Tensor | None = layer.qkv.bias
        head_norm = config.qk_norm
        block_n = MIN_DOT if noisy else 1
        _qkv_kernel[(triton.cdiv(n, block_n), h + 2 * g)](
            s, s if bias is None else bias, b, gate,
            layer.q_norm.weight if head_norm else s, layer.k_norm.weight if head_norm else s,
            self.cos, self.sin, position, slot, query, key, value,
            attend.cache.key[index], attend.cache.value[index], n, s.stride(0), config.norm_eps,
            H=h, G=g, E=e, HALF_PAD=max(MIN_DOT, triton.next_power_of_2(e // 2)), BLOCK_N=block_n,
            BIAS=bias is not None, HEAD_NORM=head_norm, NOISY=noisy, **self._ranks(), num_warps=4,
        )  # fmt: skip
        return query, key, value
