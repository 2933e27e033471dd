"""Attention for training on CUDA, where what a query sees are at most two ranges of the keys.

Every mask of training is of that kind once positions stand in order, so a tile of queries reads one run of keys for
each range and compares numbers of the query alone; nothing is planned beforehand and no mask is stored. Keys of a
frozen clean half get no gradient, and none is computed. Online softmax and recomputation in backward: FlashAttention-2,
arXiv 2307.08691.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD: dict[str, int] = {"M": 64, "N": 64, "num_warps": 4, "num_stages": 3}  # queries and keys of a tile
QUERIES: dict[str, int] = {"M": 64, "N": 64, "num_warps": 4, "num_stages": 3}
KEYS: dict[str, int] = {"M": 64, "N": 64, "num_warps": 4, "num_stages": 3}
SHARED_BYTES = 232_448  # memory that the tiles of a program may take on an H100
LOG2_E = 1.4426950408889634


@triton.jit
def _range_of(seen, part: tl.constexpr, row, real, queries):
    """First and end of one range of each row; an empty one widens no tile's run, nor overflows as loads run ahead."""
    first = tl.load(seen + 2 * part * queries + row, mask=real, other=0)
    end = tl.load(seen + (2 * part + 1) * queries + row, mask=real, other=0)
    return tl.where(first < end, first, 1 << 30), tl.where(first < end, end, 0)


@triton.jit
def _run(seen, part: tl.constexpr, row, real, queries, N: tl.constexpr):
    """The part-th run of a tile's keys, and the range of each row that it belongs to: of the first range the keys that
    all rows see, in steps of N, if it begins alike for all; then what is left of it; then the second range."""
    first, end = _range_of(seen, part // 2, row, real, queries)
    begin, last = tl.min(first, 0), tl.max(end, 0)
    if part < 2:
        whole = tl.maximum((tl.min(end, 0) - begin) // N, 0)
        solid = begin + tl.where(tl.max(first, 0) == begin, whole, 0) * N
        if part == 0:
            last = solid
        else:
            begin = solid
    return first, end, begin, last


@triton.jit
def _load_rows(x, row, stride, e, inside, last, MASKED: tl.constexpr):
    at = x + row.to(tl.int64)[:, None] * stride + e[None, :]
    return tl.load(at, mask=(row < last)[:, None] & inside[None, :] if MASKED else inside[None, :], other=0.0)


@triton.jit
def _gather(
    q, key, value, first, end, begin, last, best, total, acc, scale2, stride_k, stride_v, e, inside,
    N: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One run of keys into the online softmax of a tile of queries."""
    for k0 in range(begin, last, N):
        k_row = k0 + tl.arange(0, N)
        k = _load_rows(key, k_row, stride_k, e, inside, last, MASKED)
        v = _load_rows(value, k_row, stride_v, e, inside, last, MASKED)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        if MASKED:
            sees = (k_row[None, :] >= first[:, None]) & (k_row[None, :] < end[:, None])
            score = tl.where(sees, score, -float("inf"))
        top = tl.maximum(best, tl.max(score, 1))
        p = tl.exp2(score - top[:, None])
        fade = tl.exp2(best - top)
        total = total * fade + tl.sum(p, 1)
        acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        best = top
    return best, total, acc


@triton.jit
def _forward_kernel(
    query, key, value, seen, out, log_total,
    scale2, queries, heads, stride_q, stride_k, stride_v,
    SHARE: tl.constexpr, SIZE: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: M queries of one head. `log_total` [H, Q] is the base-2 logarithm of the softmax's denominator."""
    head = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    e = tl.arange(0, E)
    real, inside = row < queries, e < SIZE
    key += head // SHARE * SIZE
    value += head // SHARE * SIZE
    q = _load_rows(query + head * SIZE, row, stride_q, e, inside, queries, True)
    best = tl.full([M], -1e30, tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, E], tl.float32)
    for part in tl.static_range(3):
        first, end, begin, last = _run(seen, part, row, real, queries, N)
        best, total, acc = _gather(
            q, key, value, first, end, begin, last, best, total, acc, scale2, stride_k, stride_v, e, inside,
            N, part != 0, PRECISION,
        )  # fmt: skip
    result = acc / tl.where(total > 0, total, 1.0)[:, None]
    o_at = out + (row.to(tl.int64)[:, None] * heads + head) * SIZE + e[None, :]
    tl.store(o_at, result.to(out.dtype.element_ty), mask=real[:, None] & inside[None, :])
    tl.store(log_total + head * queries + row, best + tl.log2(tl.where(total > 0, total, 1.0)), mask=real)


@triton.jit
def _pull_queries(
    q, d_out, key, value, first, end, begin, last, log_m, delta_m, acc, scale2, stride_k, stride_v, e, inside,
    N: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One run of keys into the gradient of a tile of queries."""
    for k0 in range(begin, last, N):
        k_row = k0 + tl.arange(0, N)
        k = _load_rows(key, k_row, stride_k, e, inside, last, MASKED)
        v = _load_rows(value, k_row, stride_v, e, inside, last, MASKED)
        p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2 - log_m[:, None])
        if MASKED:
            sees = (k_row[None, :] >= first[:, None]) & (k_row[None, :] < end[:, None])
            p = tl.where(sees, p, 0.0)
        d_p = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
        acc += tl.dot((p * (d_p - delta_m[:, None])).to(k.dtype), k, input_precision=PRECISION)
    return acc


@triton.jit
def _queries_kernel(
    query, key, value, seen, out, slope, log_total, delta, d_query,
    scale, scale2, queries, heads, stride_q, stride_k, stride_v,
    SHARE: tl.constexpr, SIZE: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: the gradient of M queries of one head, and `delta` [H, Q] = Σ out · slope for the keys' kernel."""
    head = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    e = tl.arange(0, E)
    real, inside = row < queries, e < SIZE
    key += head // SHARE * SIZE
    value += head // SHARE * SIZE
    q = _load_rows(query + head * SIZE, row, stride_q, e, inside, queries, True)
    d_out = _load_rows(slope + head * SIZE, row, heads * SIZE, e, inside, queries, True)
    given = _load_rows(out + head * SIZE, row, heads * SIZE, e, inside, queries, True)
    delta_m = tl.sum(d_out.to(tl.float32) * given.to(tl.float32), 1)
    tl.store(delta + head * queries + row, delta_m, mask=real)
    log_m = tl.load(log_total + head * queries + row, mask=real, other=0.0)
    acc = tl.zeros([M, E], tl.float32)
    for part in tl.static_range(3):
        first, end, begin, last = _run(seen, part, row, real, queries, N)
        acc = _pull_queries(
            q, d_out, key, value, first, end, begin, last, log_m, delta_m, acc, scale2, stride_k, stride_v, e, inside,
            N, part != 0, PRECISION,
        )  # fmt: skip
    o_at = d_query + (row.to(tl.int64)[:, None] * heads + head) * SIZE + e[None, :]
    tl.store(o_at, (acc * scale).to(d_query.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit
def _keys_kernel(
    query, key, value, seen, seers, slope, log_total, delta, d_key, d_value,
    scale, scale2, queries, keys, skip, heads, stride_q, stride_k, stride_v,
    SHARE: tl.constexpr, SIZE: tl.constexpr, E: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of N keys and values of one KV head, from behind the first `skip` keys."""
    group = tl.program_id(1)
    k_row = skip + tl.program_id(0) * N + tl.arange(0, N)
    e = tl.arange(0, E)
    there, inside = k_row < keys, e < SIZE
    k = _load_rows(key + group * SIZE, k_row, stride_k, e, inside, keys, True)
    v = _load_rows(value + group * SIZE, k_row, stride_v, e, inside, keys, True)
    first, last = _range_of(seers, 0, k_row, there, keys)
    first, last = tl.min(first, 0), tl.max(last, 0)
    acc_k = tl.zeros([N, E], tl.float32)
    acc_v = tl.zeros([N, E], tl.float32)
    for share in range(SHARE):
        head = group * SHARE + share
        for q0 in range(first, last, M):
            row = q0 + tl.arange(0, M)
            real = row < last
            q = _load_rows(query + head * SIZE, row, stride_q, e, inside, last, True)
            d_out = _load_rows(slope + head * SIZE, row, heads * SIZE, e, inside, last, True)
            log_m = tl.load(log_total + head * queries + row, mask=real, other=0.0)
            delta_m = tl.load(delta + head * queries + row, mask=real, other=0.0)
            a, b = _range_of(seen, 0, row, real, queries)
            c, d = _range_of(seen, 1, row, real, queries)
            column = k_row[None, :]
            sees = (column >= a[:, None]) & (column < b[:, None]) | (column >= c[:, None]) & (column < d[:, None])
            score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
            p = tl.where(sees, tl.exp2(score - log_m[:, None]), 0.0)
            acc_v += tl.dot(tl.trans(p.to(d_out.dtype)), d_out, input_precision=PRECISION)
            d_p = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
            d_score = (p * (d_p - delta_m[:, None])).to(q.dtype)
            acc_k += tl.dot(tl.trans(d_score), q, input_precision=PRECISION)
    d_at = (k_row.to(tl.int64)[:, None] * tl.num_programs(1) + group) * SIZE + e[None, :]
    both = there[:, None] & inside[None, :]
    tl.store(d_key + d_at, (acc_k * scale).to(d_key.dtype.element_ty), mask=both)
    tl.store(d_value + d_at, acc_v.to(d_value.dtype.element_ty), mask=both)


def _packed(x: Tensor) -> Tensor:
    """Heads side by side, as the kernels read them; rows may lie apart."""
    return x if x.stride(-1) == 1 and x.stride(-2) == x.shape[-1] else x.contiguous()


def _constants(
    heads: int, groups: int, size: int, dtype: torch.dtype, tiles: dict[str, int], shared: int = SHARED_BYTES
) -> dict[str, Any]:
    """What a kernel is compiled for: as many stages, and as large tiles, as `shared` bytes hold."""
    padded = max(16, triton.next_power_of_2(size))
    m, n, row = tiles["M"], tiles["N"], padded * dtype.itemsize
    # Tiles beside those read ahead, as compiled (tests/train/test_attention.py).
    held = 6 if dtype == torch.float32 else 4
    while held * m * row > shared and m > 16:
        m, n = m // 2, n // 2
    stages = max(1, min(tiles["num_stages"], 1 + (shared - held * m * row) // (2 * n * row)))
    precision = "tf32x3" if dtype == torch.float32 else "tf32"  # three products, nearly as exact as float32
    shape = {"SHARE": heads // groups, "SIZE": size, "E": padded, "PRECISION": precision}
    return {**tiles, **shape, "M": m, "N": n, "num_stages": stages}


@cache
def _shared_bytes(device: torch.device) -> int:
    """What a program on `device` may take of it."""
    if device.type != "cuda":
        return SHARED_BYTES
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


@torch.library.custom_op("openmercury::range_attention", mutates_args=())
def _attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, seers: Tensor, skip: int
) -> tuple[Tensor, Tensor]:
    query, key, value = _packed(query), _packed(key), _packed(value)
    queries, heads, size = query.shape
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    log_total = torch.empty(heads, queries, dtype=torch.float32, device=query.device)
    constants = _constants(heads, key.shape[1], size, query.dtype, FORWARD, _shared_bytes(query.device))
    with torch.cuda.device_of(query):  # Triton launches on the current device
        _forward_kernel[(triton.cdiv(queries, constants["M"]), heads)](
            query, key, value, seen, out, log_total, size**-0.5 * LOG2_E, queries, heads,
            query.stride(0), key.stride(0), value.stride(0), **constants,
        )  # fmt: skip
    return out, log_total


@_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, seers: Tensor, skip: int) -> tuple[Tensor, Tensor]:
    queries, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((heads, queries), dtype=torch.float32)


@torch.library.custom_op("openmercury::range_attention_backward", mutates_args=())
def _backward(
    slope: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    seers: Tensor,
    skip: int,
    out: Tensor,
    log_total: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value, slope = _packed(query), _packed(key), _packed(value), slope.contiguous()
    (queries, heads, size), keys = query.shape, len(key)
    d_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    d_key, d_value = (torch.empty(key.shape, dtype=key.dtype, device=key.device) for _ in range(2))
    d_key[:skip], d_value[:skip] = 0, 0
    delta = torch.empty_like(log_total)
    shape = queries, heads, query.stride(0), key.stride(0), value.stride(0)
    facts, shared = (heads, key.shape[1], size, query.dtype), _shared_bytes(query.device)
    own, others = _constants(*facts, QUERIES, shared), _constants(*facts, KEYS, shared)
    with torch.cuda.device_of(query):
        _queries_kernel[(triton.cdiv(queries, own["M"]), heads)](
            query, key, value, seen, out, slope, log_total, delta, d_query, size**-0.5, size**-0.5 * LOG2_E, *shape,
            **own,
        )  # fmt: skip
        _keys_kernel[(triton.cdiv(keys - skip, others["N"]), key.shape[1])](
            query, key, value, seen, seers, slope, log_total, delta, d_key, d_value, size**-0.5, size**-0.5 * LOG2_E,
            queries, keys, skip, *shape[1:], **others,
        )  # fmt: skip
    return d_query, d_key, d_value


@_backward.register_fake
def _(
    slope: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    seers: Tensor,
    skip: int,
    out: Tensor,
    log_total: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.skip = inputs
    ctx.save_for_backward(*tensors, *output)


def _slopes(ctx: Any, d_out: Tensor, d_log_total: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, seen, seers, out, log_total = ctx.saved_tensors
    found = _backward(d_out, query, key, value, seen, seers, ctx.skip, out, log_total)
    return *found, None, None, None


_attention.register_autograd(_slopes, setup_context=_keep)


def range_attention(
    query_QHE: Tensor, key_KGE: Tensor, value_KGE: Tensor, seen_4Q: Tensor, seers_2K: Tensor, skip: int = 0
) -> Tensor:
    """Softmax attention with grouped heads, [Q, H, E], in bfloat16, float16 or float32; differentiable.

    Query i sees the keys from seen[0, i] to before seen[1, i], and from seen[2, i] to before seen[3, i], two ranges
    that do not overlap; one that sees nothing gets zeros. Key k is seen by no query outside seers[0, k] … seers[1, k],
    which bounds the work: what is seen, `seen` alone decides. Both are int32 and contiguous. The first `skip` keys and
    values get no gradient. It is the faster the closer together the ranges of neighbours lie.
    """
    assert all(x.dtype == torch.int32 and x.is_contiguous() for x in (seen_4Q, seers_2K))
    return cast(Tensor, _attention(query_QHE, key_KGE, value_KGE, seen_4Q, seers_2K, skip)[0])
