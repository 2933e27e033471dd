"""The head, and what is read of it: one token a row with its statistics, while the logits themselves are never stored.

A program multiplies a tile of hidden rows with a tile of the vocabulary and leaves the best score of each row there,
and if asked the parts of Σ exp; a second kernel joins the tiles of a row. Its plain twin is `diffusion.sample.choose`
on the model's logits. Logits stay in float32, so near ties fall as the network left them, not by rounding to bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from openmercury.diffusion.chain import LISTED, RUN, Shortlist
from openmercury.diffusion.sample import Choice
from openmercury.engine.cuda.launch import after_last_kernel, overlaps
from openmercury.engine.cuda.products import FEW, Matrix
from openmercury.engine.head import Chosen

BLOCK_V = RUN


class Wanted(NamedTuple):
    """Which predictions are wanted, and how each is to be drawn; [S] fields are looked up by the slot of a row.

    Row m reads hidden row `index_M[m]` (None: row m) of a forward with `columns` positions for each of `rows_R`.
    `proposal_N` is the token whose odds are wanted; it is read with statistics only.
    """

    index_M: Tensor | None
    rows_R: Tensor
    columns: int
    position_N: Tensor
    proposal_N: Tensor
    temperature_S: Tensor
    seed_S: Tensor


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _gumbel(v, seed, position):
    """Noise [M, V] of `sample.gumbel_noise`: −log(−log u), u = (bits + ½) / 2³². Near 1, log u ≈ u − 1 keeps digits."""
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    key = _mix(_mix(_mix(low) ^ high) ^ position.to(tl.uint32) ^ 0x9E3779B9)
    bits = _mix(_mix(v.to(tl.uint32))[None, :] ^ key[:, None])
    rest = ((0xFFFFFFFF - bits).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    log_u = tl.where(rest < 1e-3, -(rest + 0.5 * rest * rest), tl.log(u))
    return -tl.log(-log_u)


@triton.jit
def _head_kernel(
    x, weight, scale, index, rows, position, proposal, temperature, seed, top, top_at, stats, proposed,
    count, vocabulary, columns, mask_id,
    D: tl.constexpr, SCALED: tl.constexpr, INDEXED: tl.constexpr, SAMPLE: tl.constexpr, STATS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M rows × BLOCK_V tokens. Tiles of one piece of the vocabulary run side by side, so that its
    weights are read from memory once."""
    tiles_m = tl.cdiv(count, BLOCK_M)
    v0 = tl.program_id(0) // tiles_m * BLOCK_V
    m = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    v = v0 + tl.arange(0, BLOCK_V)
    m_ok, v_ok = m < count, v < vocabulary
    if SCALED:
        worth = tl.load(scale + v, mask=v_ok, other=0.0)
    after_last_kernel(OVERLAP)
    n = m
    if INDEXED:
        n = tl.load(index + m, mask=m_ok, other=0)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for k0 in range(0, D, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        k_ok = k < D
        w = tl.load(weight + v.to(tl.int64)[:, None] * D + k[None, :], mask=v_ok[:, None] & k_ok[None, :], other=0.0)
        a = tl.load(x + n.to(tl.int64)[:, None] * D + k[None, :], mask=m_ok[:, None] & k_ok[None, :], other=0.0)
        acc += tl.dot(a, tl.trans(w.to(a.dtype)), input_precision="ieee")
    if SCALED:
        acc *= worth[None, :]
    logit = tl.where((v_ok & (v != mask_id))[None, :], acc, -float("inf"))
    score = logit
    if SAMPLE:
        slot = tl.load(rows + n // columns, mask=m_ok, other=0)
        heat = tl.load(temperature + slot, mask=m_ok, other=0.0)
        warm = heat > 0
        logit = logit / tl.where(warm, heat, 1.0)[:, None]
        noise = _gumbel(v, tl.load(seed + slot, mask=m_ok, other=0), tl.load(position + n, mask=m_ok, other=0) + 1)
        score = tl.where(warm[:, None], logit + noise, logit)
    best_at = tl.argmax(score, 1)
    best = tl.max(score, 1)
    broken = tl.max((acc != acc).to(tl.int32), 1) > 0
    tiles = tl.cdiv(vocabulary, BLOCK_V)
    to = m * tiles + v0 // BLOCK_V
    tl.store(top + to, tl.where(broken, float("nan"), best), mask=m_ok)
    tl.store(top_at + to, v0 + best_at, mask=m_ok)
    if STATS:
        peak = tl.max(logit, 1)
        share = tl.exp(logit - tl.where(peak == -float("inf"), 0.0, peak)[:, None])
        chosen = tl.sum(tl.where(tl.arange(0, BLOCK_V)[None, :] == best_at[:, None], logit, 0.0), 1)
        size = count * tiles
        tl.store(stats + to, chosen, mask=m_ok)
        tl.store(stats + size + to, peak, mask=m_ok)
        tl.store(stats + 2 * size + to, tl.sum(share, 1), mask=m_ok)
        tl.store(stats + 3 * size + to, tl.sum(tl.where(share > 0, share * logit, 0.0), 1), mask=m_ok)
        wanted = tl.load(proposal + n, mask=m_ok, other=0)
        here = (wanted >= v0) & (wanted < v0 + BLOCK_V) & m_ok
        tl.store(proposed + m, tl.sum(tl.where(v[None, :] == wanted[:, None], logit, 0.0), 1), mask=here)


@triton.jit
def _join_kernel(
    top, top_at, stats, proposed, token, confidence, entropy, odds, count, tiles,
    BLOCK_T: tl.constexpr, STATS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: the tiles of one row → its token (−1 if a score is NaN or infinite) and statistics."""
    m = tl.program_id(0)
    t = tl.arange(0, BLOCK_T)
    ok = t < tiles
    after_last_kernel(OVERLAP)
    score = tl.load(top + m * tiles + t, mask=ok, other=-float("inf"))
    broken = (tl.max((score != score).to(tl.int32), 0) > 0) | (tl.max(score, 0) == float("inf"))
    pick = tl.argmax(score, 0)
    tl.store(token + m, tl.where(broken, -1, tl.load(top_at + m * tiles + pick)))
    if STATS:
        size = count * tiles
        at = stats + m * tiles + t
        peak = tl.load(at + size, mask=ok, other=-float("inf"))
        most = tl.max(peak, 0)
        fade = tl.exp(peak - most)
        mass = tl.sum(fade * tl.load(at + 2 * size, mask=ok, other=0.0), 0)
        weighted = tl.sum(fade * tl.load(at + 3 * size, mask=ok, other=0.0), 0)
        log_mass = most + tl.log(mass)
        chosen = tl.load(stats + m * tiles + pick)
        tl.store(confidence + m, tl.where(broken, 0.0, tl.exp(chosen - log_mass)))
        tl.store(entropy + m, tl.where(broken, float("inf"), tl.maximum(log_mass - weighted / mass, 0.0)))
        tl.store(odds + m, tl.where(broken, -1.0, tl.exp(tl.load(proposed + m) - chosen)))


@triton.jit
def _shortlist_kernel(
    top, top_at, chosen, token, score, logit, tiles,
    BLOCK_T: tl.constexpr, LISTED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: the tiles of one row → its `LISTED` best, best first."""
    m = tl.program_id(0)
    t = tl.arange(0, BLOCK_T)
    after_last_kernel(OVERLAP)
    left = tl.load(top + m * tiles + t, mask=t < tiles, other=-float("inf"))
    left = tl.where(left == left, left, -float("inf"))  # a NaN is nobody's candidate
    for c in tl.static_range(LISTED):
        best, pick = tl.max(left, 0), tl.minimum(tl.argmax(left, 0), tiles - 1)
        tl.store(score + m * LISTED + c, best)
        tl.store(token + m * LISTED + c, tl.load(top_at + m * tiles + pick).to(tl.int64))
        tl.store(logit + m * LISTED + c, tl.load(chosen + m * tiles + pick))
        left = tl.where(t == pick, -float("inf"), left)


def choose_fused(
    x_ND: Tensor, head: Matrix, wanted: Wanted, mask_id: int, *, sample: bool, statistics: bool, listed: bool = False
) -> Chosen:
    """`sample.choose` on the logits x·Wᵀ of M rows; without truncation, and the mask token is never chosen.

    Rows without noise in temperature take the greedy token; without `sample` all do. Without `statistics` only tokens,
    and logits of shortlists are their scores. A row whose largest logit is NaN or infinite gets what `Choice` says.
    """
    count = len(x_ND) if wanted.index_M is None else len(wanted.index_M)
    weight_VD, scale_V = head
    vocabulary, d = weight_VD.shape
    device = x_ND.device
    tiles = triton.cdiv(vocabulary, BLOCK_V)
    top = torch.empty(count, tiles, dtype=torch.float32, device=device)
    top_at = torch.empty(count, tiles, dtype=torch.int32, device=device)
    stats = torch.empty(4 if statistics else 0, count, tiles, dtype=torch.float32, device=device)
    token = torch.empty(count, dtype=torch.long, device=device)
    proposed, confidence, entropy, odds = torch.empty(4, count, dtype=torch.float32, device=device)
    block_m = max(16, min(64, triton.next_power_of_2(count))) if count <= FEW else 128
    overlap = overlaps(device)
    _head_kernel[(triton.cdiv(count, block_m) * tiles,)](
        x_ND, weight_VD, top if scale_V is None else scale_V, token if wanted.index_M is None else wanted.index_M,
        wanted.rows_R, wanted.position_N, wanted.proposal_N, wanted.temperature_S, wanted.seed_S,
        top, top_at, stats, proposed, count, vocabulary, wanted.columns, mask_id,
        D=d, SCALED=scale_V is not None, INDEXED=wanted.index_M is not None, SAMPLE=sample, STATS=statistics,
        BLOCK_M=block_m, BLOCK_V=BLOCK_V, BLOCK_K=64 if scale_V is None else 128, OVERLAP=overlap,
        num_warps=8 if block_m == 128 else 4, num_stages=3, launch_pdl=overlap,
    )  # fmt: skip
    _join_kernel[(count,)](
        top, top_at, stats, proposed, token, confidence, entropy, odds, count, tiles,
        BLOCK_T=triton.next_power_of_2(tiles), STATS=statistics, OVERLAP=overlap, num_warps=4, launch_pdl=overlap,
    )  # fmt: skip
    choice = Choice(token, confidence, entropy, odds)
    if not listed:
        return Chosen(choice, None)
    most = min(LISTED, tiles)
    token_MC = torch.empty(count, most, dtype=torch.long, device=device)
    score_MC, logit_MC = torch.empty(2, count, most, dtype=torch.float32, device=device)
    _shortlist_kernel[(count,)](
        top, top_at, stats[0] if statistics else top, token_MC, score_MC, logit_MC, tiles,
        BLOCK_T=triton.next_power_of_2(tiles), LISTED=most, OVERLAP=overlap, num_warps=4, launch_pdl=overlap,
    )  # fmt: skip
    return Chosen(choice, Shortlist(token_MC, score_MC, logit_MC))
