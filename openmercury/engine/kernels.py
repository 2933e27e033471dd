"""Triton kernels of the GPU runner: attention over pages, and one pass over the logits of a row.

Imported on CUDA only. Each has a plain twin (`cache.GatherAttend`, `diffusion.sample.choose`) that the tests hold it
to; with TRITON_INTERPRET=1 they run on the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from openmercury.diffusion.sample import Choice, RowParams, gumbel_keys
from openmercury.engine.cache import PagedCache, slots_of
from openmercury.engine.modes import ForwardBatch


@triton.jit
def _attend_kernel(
    query, stored_key, stored_value, new_key, new_value, pages, end, group, out, stats,
    scale, queries, pages_per_row,
    stride_qr, stride_qn, stride_kr, stride_kn, stride_vr, stride_vn, stride_slot,
    SHARE: tl.constexpr, SHARE_PAD: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_NEW: tl.constexpr, SPLITS: tl.constexpr,
    NOISY: tl.constexpr,
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
    end_m = tl.load(end + at, mask=real, other=0)
    group_m = tl.load(group + at, mask=real, other=-2)
    q_at = query + row * stride_qr + n[:, None] * stride_qn + (head * SHARE + h)[:, None] * SIZE + e[None, :]
    q = tl.load(q_at, mask=real[:, None], other=0.0)
    best = tl.full([BLOCK_Q * SHARE_PAD], -1e30, tl.float32)
    total = tl.zeros([BLOCK_Q * SHARE_PAD], tl.float32)
    acc = tl.zeros([BLOCK_Q * SHARE_PAD, SIZE], tl.float32)
    last = tl.max(end_m, 0)
    # Page numbers are read one round ahead: keys then wait for one load, not for two in turn.
    run = tl.cdiv(tl.cdiv(last, SPLITS), BLOCK_T) * BLOCK_T
    first, last = split * run, tl.minimum(last, (split + 1) * run)
    t = first + tl.arange(0, BLOCK_T)
    page = tl.load(pages + row * pages_per_row + t // PAGE, mask=t < last, other=0)
    for t0 in range(first, last, BLOCK_T):
        t = t0 + tl.arange(0, BLOCK_T)
        inside = t < last
        slot = (page.to(tl.int64) * PAGE + t % PAGE) * stride_slot + head * SIZE
        k = tl.load(stored_key + slot[:, None] + e[None, :], mask=inside[:, None], other=0.0)
        v = tl.load(stored_value + slot[:, None] + e[None, :], mask=inside[:, None], other=0.0)
        coming = t + BLOCK_T
        page = tl.load(pages + row * pages_per_row + coming // PAGE, mask=coming < last, other=0)
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
            new_k = tl.load(k_at, mask=there[:, None], other=0.0)
            new_v = tl.load(v_at, mask=there[:, None], other=0.0)
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
def _combine_kernel(part, stats, out, heads, SIZE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_H: tl.constexpr):
    """One program: BLOCK_H query heads; the parts of each, weighted by their share of the softmax."""
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


class PagedAttend:
    """`Attend` straight over the pages; nothing is gathered, no mask is built, and it suits CUDA graphs."""

    def __init__(self, cache: PagedCache, batch: ForwardBatch, pages_RP: Tensor, *, noisy: bool) -> None:
        self.cache, self.noisy, self.pages_RP = cache, noisy, pages_RP.contiguous()
        self.slot_RQ = slots_of(batch, pages_RP, cache.page_size)
        self.end_RQ, self.group_RQ = batch.end_RQ.int().contiguous(), batch.group_RQ.int().contiguous()

    def __call__(self, layer: int, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        self.cache.key[layer][self.slot_RQ] = key_BNGE
        self.cache.value[layer][self.slot_RQ] = value_BNGE
        return self.read(layer, query_BNHE.contiguous(), (key_BNGE.contiguous(), value_BNGE.contiguous()))

    def read(self, layer: int, query_BNHE: Tensor, new: tuple[Tensor, Tensor] | None) -> Tensor:
        """Attention after the clean keys are in the cache; `new` holds this forward's keys and values, if noisy."""
        key, value = self.cache.key[layer], self.cache.value[layer]
        new_key, new_value = new if self.noisy and new is not None else (query_BNHE, query_BNHE)
        rows, queries, heads, size = query_BNHE.shape
        kv_heads = key.shape[1]
        shared = heads // kv_heads
        shared_pad = triton.next_power_of_2(shared)
        block_q = max(16 // shared_pad, min(triton.next_power_of_2(queries), 64 // shared_pad), 1)
        out = torch.empty_like(query_BNHE)
        tiles = triton.cdiv(queries, block_q) * kv_heads * rows
        splits = max(1, min(MOST_SPLITS, 1 << (PROCESSORS // tiles).bit_length() - 1)) if tiles <= PROCESSORS else 1
        count = rows * queries * heads * splits
        part, stats = out, out
        if splits > 1:
            part, stats = (torch.empty(count * each, dtype=torch.float32, device=out.device) for each in (size, 2))
        grid = (triton.cdiv(queries, block_q), kv_heads, rows * splits)
        _attend_kernel[grid](
            query_BNHE, key, value, new_key, new_value, self.pages_RP, self.end_RQ, self.group_RQ, part, stats,
            size**-0.5, queries, self.pages_RP.shape[1],
            query_BNHE.stride(0), query_BNHE.stride(1), new_key.stride(0), new_key.stride(1),
            new_value.stride(0), new_value.stride(1), key.stride(0),
            SHARE=shared, SHARE_PAD=shared_pad, SIZE=size, PAGE=self.cache.page_size,
            BLOCK_Q=block_q, BLOCK_T=BLOCK_T, BLOCK_NEW=64 if queries > 32 else 32, SPLITS=splits, NOISY=self.noisy,
            num_warps=WARPS,
        )  # fmt: skip
        if splits > 1:
            every = rows * queries * heads
            _combine_kernel[(triton.cdiv(every, BLOCK_H),)](
                part, stats, out, every, SIZE=size, SPLITS=splits, BLOCK_H=BLOCK_H, num_warps=4
            )
        return out


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _row_kernel(
    logits, temperature, key, partial, index, vocabulary, stride, mask_id,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, SAMPLE: tl.constexpr,
):  # fmt: skip
    """One program: one of SPLITS slices of one row → noisy maximum, its token; max, Σ exp, Σ exp·x of x = logit/T."""
    row, split = tl.program_id(0), tl.program_id(1)
    t = tl.load(temperature + row)
    warm = t > 0
    scale = 1.0 / tl.where(warm, t, 1.0)
    part = (vocabulary + SPLITS - 1) // SPLITS
    begin = split * part
    stop = tl.minimum(begin + part, vocabulary)
    top, top_at, top_x = -float("inf"), 0, -float("inf")
    best, total, weighted = -1e30, 0.0, 0.0
    for v0 in range(begin, stop, BLOCK):
        v = v0 + tl.arange(0, BLOCK)
        real = (v < stop) & (v != mask_id)
        x = tl.load(logits + row.to(tl.int64) * stride + v, mask=real, other=-float("inf")).to(tl.float32) * scale
        score = x
        if SAMPLE:
            seed = tl.load(key + row)
            bits = _mix(_mix(v.to(tl.uint32)) ^ seed.to(tl.uint32))
            # As in `gumbel_noise`: −log(−log u), u = (bits + ½) / 2³². Near 1 log u ≈ u − 1 keeps its digits.
            rest = ((0xFFFFFFFF - bits).to(tl.float32) + 0.5) * 2.3283064365386963e-10
            u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
            log_u = tl.where(rest < 1e-3, -(rest + 0.5 * rest * rest), tl.log(u))
            score = tl.where(warm, x - tl.log(-log_u), x)
        here = tl.max(score, 0)
        if here > top:
            at = tl.argmax(score, 0)
            top_x = tl.sum(tl.where(tl.arange(0, BLOCK) == at, x, 0.0), 0)
            top, top_at = here, v0 + at
        new_best = tl.maximum(best, tl.max(x, 0))
        weight = tl.where(real, tl.exp(x - new_best), 0.0)
        fade = tl.exp(best - new_best)
        total = total * fade + tl.sum(weight, 0)
        weighted = weighted * fade + tl.sum(tl.where(weight > 0, weight * x, 0.0), 0)
        best = new_best
    at_out = (row * SPLITS + split) * 5
    tl.store(partial + at_out, top)
    tl.store(partial + at_out + 1, top_x)
    tl.store(partial + at_out + 2, best)
    tl.store(partial + at_out + 3, total)
    tl.store(partial + at_out + 4, weighted)
    tl.store(index + row * SPLITS + split, top_at)


def choose_fused(logits_MV: Tensor, params: RowParams, mask_id: int, *, sample: bool) -> Choice:
    """`diffusion.sample.choose` without truncation, reading the logits once and writing no probabilities."""
    rows, vocabulary = logits_MV.shape
    splits = 32 if rows < 64 else 8 if rows < 512 else 2
    partial = torch.empty(rows, splits, 5, dtype=torch.float32, device=logits_MV.device)
    index = torch.empty(rows, splits, dtype=torch.long, device=logits_MV.device)
    # Bits of the key as int32: Triton reads them back as unsigned.
    key = gumbel_keys(params.seed_M, params.position_M)
    key = torch.where(key >= 2**31, key - 2**32, key).int()
    _row_kernel[(rows, splits)](
        logits_MV, params.temperature_M, key, partial, index, vocabulary, logits_MV.stride(0), mask_id,
        SPLITS=splits, BLOCK=2048, SAMPLE=sample, num_warps=8,
    )  # fmt: skip
    top, top_x, best, total, weighted = partial.unbind(-1)
    pick = top.argmax(-1, keepdim=True)
    peak = best.max(-1, keepdim=True).values
    fade = (best - peak).exp()
    mass = (total * fade).sum(-1)
    log_mass = peak[:, 0] + mass.log()
    entropy = log_mass - (weighted * fade).sum(-1) / mass
    chosen = top_x.gather(1, pick)[:, 0]
    scale = torch.where(params.temperature_M > 0, params.temperature_M, 1.0)
    proposed = logits_MV.gather(1, params.proposal_M[:, None])[:, 0].float() / scale
    return Choice(
        index.gather(1, pick)[:, 0], (chosen - log_mass).exp(), entropy.clamp(min=0), (proposed - chosen).exp()
    )
