"""Attention straight over the pages: nothing is gathered, no mask is built. Its plain twin is `cache.GatherAttend`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from openmercury.engine.cache import PagedCache
from openmercury.engine.cuda.launch import after_last_kernel, overlaps


@triton.jit
def _attend_kernel(
    query, stored_key, stored_value, new_key, new_value, rows, pages, end, group, out, stats,
    scale, queries, pages_per_row,
    stride_qr, stride_qn, stride_kr, stride_kn, stride_vr, stride_vn, stride_slot,
    SHARE: tl.constexpr, SHARE_PAD: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_NEW: tl.constexpr, SPLITS: tl.constexpr,
    NOISY: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_Q positions × SHARE_PAD query heads of one KV head of one row, over pages, then its groups.

    With SPLITS > 1 it reads one run of the pages (the last also the groups) and leaves an unscaled sum with its maximum
    and total in `stats`, for `_combine_kernel`.
    """
    tile, head = tl.program_id(0), tl.program_id(1)
    row, split = tl.program_id(2) // SPLITS, tl.program_id(2) % SPLITS
    m = tl.arange(0, BLOCK_Q * SHARE_PAD)
    e = tl.arange(0, SIZE)
    n = tile * BLOCK_Q + m // SHARE_PAD
    h = m % SHARE_PAD
    real = (n < queries) & (h < SHARE)
    at = row * queries + n
    pages += tl.load(rows + row) * pages_per_row
    end_m = tl.load(end + at, mask=real, other=0)
    group_m = tl.load(group + at, mask=real, other=-2)
    last = tl.max(end_m, 0)
    # Page numbers are read one round ahead: keys then wait for one load, not for two in turn.
    run = tl.cdiv(tl.cdiv(last, SPLITS), BLOCK_T) * BLOCK_T
    first, last = split * run, tl.minimum(last, (split + 1) * run)
    t = first + tl.arange(0, BLOCK_T)
    page = tl.load(pages + t // PAGE, mask=t < last, other=0)
    after_last_kernel(OVERLAP)
    q_at = query + row * stride_qr + n[:, None] * stride_qn + (head * SHARE + h)[:, None] * SIZE + e[None, :]
    q = tl.load(q_at, mask=real[:, None], other=0.0)
    best = tl.full([BLOCK_Q * SHARE_PAD], -1e30, tl.float32)
    total = tl.zeros([BLOCK_Q * SHARE_PAD], tl.float32)
    acc = tl.zeros([BLOCK_Q * SHARE_PAD, SIZE], tl.float32)
    for t0 in range(first, last, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        inside = t < last
        slot = (page.to(tl.int64) * PAGE + t % PAGE) * stride_slot + head * SIZE
        k = tl.load(stored_key + slot[:, None] + e[None, :], mask=inside[:, None], other=0.0)
        v = tl.load(stored_value + slot[:, None] + e[None, :], mask=inside[:, None], other=0.0)
        coming = t + BLOCK_T
        page = tl.load(pages + coming // PAGE, mask=coming < last, other=0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(t[None, :] < end_m[:, None], score, -1e30)
        new_best = tl.maximum(best, tl.max(score, 1))
        p = tl.where(t[None, :] < end_m[:, None], tl.exp(score - new_best[:, None]), 0.0)
        fade = tl.exp(best - new_best)
        total = total * fade + tl.sum(p, 1)
        acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        best = new_best
    if NOISY:
        for n0 in range(0, tl.where(split == SPLITS - 1, queries, 0), BLOCK_NEW):
            other = n0 + tl.arange(0, BLOCK_NEW)
            there = other < queries
            group_t = tl.load(group + row * queries + other, mask=there, other=-3)
            k_at = new_key + row * stride_kr + other[:, None] * stride_kn + head * SIZE + e[None, :]
            v_at = new_value + row * stride_vr + other[:, None] * stride_vn + head * SIZE + e[None, :]
            noisy = (there & (group_t >= 0))[:, None]  # padding may hold NaN, and 0 · NaN is NaN
            new_k = tl.load(k_at, mask=noisy, other=0.0)
            new_v = tl.load(v_at, mask=noisy, other=0.0)
            sees = (group_m[:, None] == group_t[None, :]) & (group_t >= 0)[None, :]
            near = tl.dot(q, tl.trans(new_k), input_precision="ieee") * scale
            near = tl.where(sees, near, -1e30)
            top = tl.maximum(best, tl.max(near, 1))
            weight = tl.where(sees, tl.exp(near - top[:, None]), 0.0)
            shrink = tl.exp(best - top)
            total = total * shrink + tl.sum(weight, 1)
            acc = acc * shrink[:, None] + tl.dot(weight.to(new_v.dtype), new_v, input_precision="ieee")
            best = top
    at_head = (row * queries + n) * (tl.num_programs(1) * SHARE) + head * SHARE + h
    if SPLITS == 1:
        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + at_head[:, None] * SIZE + e[None, :], result.to(out.dtype.element_ty), mask=real[:, None])
    else:
        at_part = at_head * SPLITS + split
        tl.store(out + at_part[:, None] * SIZE + e[None, :], acc, mask=real[:, None])
        tl.store(stats + at_part * 2, best, mask=real)
        tl.store(stats + at_part * 2 + 1, total, mask=real)


@triton.jit
def _combine_kernel(
    part, stats, out, heads,
    SIZE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_H query heads; the parts of each, weighted by their share of the softmax."""
    after_last_kernel(OVERLAP)
    h = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    s, e = tl.arange(0, SPLITS), tl.arange(0, SIZE)
    real = h < heads
    at = h[:, None] * SPLITS + s[None, :]
    best = tl.load(stats + at * 2, mask=real[:, None], other=-1e30)
    total = tl.load(stats + at * 2 + 1, mask=real[:, None], other=0.0)
    weight = tl.exp(best - tl.max(best, 1)[:, None])
    sum_ = tl.sum(weight * total, 1)
    parts = tl.load(part + at[:, :, None] * SIZE + e[None, None, :], mask=real[:, None, None], other=0.0)
    result = tl.sum(parts * weight[:, :, None], 1) / tl.where(sum_ > 0, sum_, 1.0)[:, None]
    tl.store(out + h[:, None] * SIZE + e[None, :], result.to(out.dtype.element_ty), mask=real[:, None])


BLOCK_T, WARPS = 64, 4  # keys read at once, and by how many warps
MOST_SPLITS, PROCESSORS = 8, 132  # runs of pages read side by side, while an H100 has processors left for them
BLOCK_H = 4


class Layout(NamedTuple):
    """Where the positions of a forward stand: Q columns for each of R rows, flattened to N, under the rule of `masks`.

    `rows_R` are slots, whose page tables are `pages` [S, P]; `slot_N` is where a clean position's keys are kept.
    """

    rows_R: Tensor
    columns: int
    pages: Tensor
    position_N: Tensor
    end_N: Tensor
    group_N: Tensor
    slot_N: Tensor


def attend(
    cache: PagedCache, layer: int, layout: Layout, query_NHE: Tensor, new: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Attention [N, H, E] of one layer, whose clean keys are in the cache; `new`: this forward's keys and values
    [N, G, E], which noisy positions see of their group (None: there are none)."""
    key, value = cache.key[layer], cache.value[layer]
    noisy = new is not None
    new_key, new_value = new if new is not None else (query_NHE, query_NHE)
    count, heads, size = query_NHE.shape
    rows, queries, kv_heads = len(layout.rows_R), layout.columns, key.shape[1]
    shared = heads // kv_heads
    shared_pad = triton.next_power_of_2(shared)
    block_q = max(16 // shared_pad, min(triton.next_power_of_2(queries), 64 // shared_pad), 1)
    out = torch.empty_like(query_NHE)
    tiles = triton.cdiv(queries, block_q) * kv_heads * rows
    splits = max(1, min(MOST_SPLITS, 1 << (PROCESSORS // tiles).bit_length() - 1)) if tiles <= PROCESSORS else 1
    part, stats = out, out
    if splits > 1:
        part, stats = (
            torch.empty(count * heads * splits * each, dtype=torch.float32, device=out.device) for each in (size, 2)
        )
    overlap = overlaps(out.device)
    _attend_kernel[triton.cdiv(queries, block_q), kv_heads, rows * splits](
        query_NHE, key, value, new_key, new_value, layout.rows_R, layout.pages, layout.end_N, layout.group_N, part,
        stats, size**-0.5, queries, layout.pages.shape[1],
        queries * query_NHE.stride(0), query_NHE.stride(0), queries * new_key.stride(0), new_key.stride(0),
        queries * new_value.stride(0), new_value.stride(0), key.stride(0),
        SHARE=shared, SHARE_PAD=shared_pad, SIZE=size, PAGE=cache.page_size,
        BLOCK_Q=block_q, BLOCK_T=BLOCK_T, BLOCK_NEW=64 if queries > 32 else 32, SPLITS=splits, NOISY=noisy,
        OVERLAP=overlap, num_warps=WARPS, launch_pdl=overlap,
    )  # fmt: skip
    if splits > 1:
        _combine_kernel[(triton.cdiv(count * heads, BLOCK_H),)](
            part, stats, out, count * heads, SIZE=size, SPLITS=splits, BLOCK_H=BLOCK_H, OVERLAP=overlap,
            num_warps=4, launch_pdl=overlap,
        )  # fmt: skip
    return out


class PagedAttend:
    """`model.transformer.Attend` over the pages, for the plain network (float32 on CUDA, and the tests)."""

    def __init__(self, cache: PagedCache, layout: Layout, *, noisy: bool) -> None:
        self.cache, self.layout, self.noisy = cache, layout, noisy

    def __call__(self, layer: int, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        query, key, value = (x.flatten(0, 1).contiguous() for x in (query_BNHE, key_BNGE, value_BNGE))
        self.cache.key[layer][self.layout.slot_N] = key
        self.cache.value[layer][self.layout.slot_N] = value
        return attend(self.cache, layer, self.layout, query, (key, value) if self.noisy else None).view_as(query_BNHE)
