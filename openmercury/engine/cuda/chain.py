"""The chain of drafts on CUDA; its plain twin is `diffusion.chain.Linker`, which explains it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from openmercury.diffusion.chain import Linker
from openmercury.engine.cuda.launch import after_last_kernel, overlaps, pad
from openmercury.engine.cuda.steps import first_mask
from openmercury.engine.head import Chosen
from openmercury.engine.state import Slots

TABLE_ROWS = 8192  # tokens whose embeddings are multiplied at once when the tables are made


class Tables:
    """B e of every token beside the linker's E Oᵀ, both [V, rank], and S [rank, D]."""

    def __init__(self, linker: Linker) -> None:
        with torch.inference_mode():
            token_V = torch.arange(len(linker.out_VR), device=linker.out_VR.device)
            self.before_VR = torch.cat([linker.before(part) for part in token_V.split(TABLE_ROWS)])
        self.out_VR, self.state_RD = linker.out_VR, linker.chain.state.data


@triton.jit
def _state_kernel(
    x, index, state, found,
    D: tl.constexpr, D_PAD: tl.constexpr, RANK: tl.constexpr, BLOCK_R: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: S x of one hidden row and BLOCK_R rows of S, x scaled to mean square 1."""
    after_last_kernel(OVERLAP)
    m = tl.program_id(0)
    d, r = tl.arange(0, D_PAD), tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = tl.load(index + m).to(tl.int64)
    wide = tl.load(x + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / D + 1e-6)
    w = tl.load(state + r[:, None] * D + d[None, :], mask=(r[:, None] < RANK) & (d[None, :] < D), other=0.0)
    tl.store(found + m * RANK + r, tl.sum(w.to(tl.float32) * wide[None, :], 1), mask=r < RANK)


@triton.jit
def _chain_kernel(
    rows, clean, kept, index, listed_token, listed_score, listed_logit, first_sure, state, before, out,
    temperature, ahead, drafted, sure, clean_stride, ahead_stride, mask_id,
    BLOCK: tl.constexpr, K_PAD: tl.constexpr, WIDTH: tl.constexpr, INDEXED: tl.constexpr, LISTED: tl.constexpr,
    C_PAD: tl.constexpr, RANK: tl.constexpr, R_PAD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: the choices of one row, one after the other.

    Of `verified`: the group behind the `kept` drafts. Its k-th hidden row is `index`, and the shortlist stands there if
    INDEXED, else at its own place among the groups. Of `diffusion` (BLOCK): all columns of the block; what is clean
    keeps its choice `clean`, and what is settled is known to the column behind it.
    """
    after_last_kernel(OVERLAP)
    row = tl.program_id(0)
    c, r = tl.arange(0, C_PAD), tl.arange(0, R_PAD)
    c_ok, r_ok = c < LISTED, r < RANK
    s = tl.load(rows + row)
    heat = tl.load(temperature + s)
    heat = tl.where(heat > 0, heat, 1.0)
    run = tl.full([], -1, tl.int64)
    token = run * 0
    if BLOCK:
        run = first_mask(ahead + s * ahead_stride, WIDTH, K_PAD, mask_id).to(tl.int64)
    else:
        token = tl.maximum(tl.load(clean + row * clean_stride + tl.load(kept + row)), 0).to(tl.int64)
    for k in range(WIDTH):
        own = row * WIDTH + k
        m = own
        if INDEXED:
            m = tl.load(index + own)
        if BLOCK:
            held = tl.load(ahead + s * ahead_stride + tl.maximum(k - 1, 0)).to(tl.int64)
            token = tl.where((k > 0) & (held != mask_id), held, token)
        ids = tl.load(listed_token + m * LISTED + c, mask=c_ok, other=0)
        score = tl.load(listed_score + m * LISTED + c, mask=c_ok, other=-float("inf")).to(tl.float32)
        logit = tl.load(listed_logit + m * LISTED + c, mask=c_ok, other=-float("inf")).to(tl.float32)
        ends = tl.load(out + ids[:, None] * RANK + r[None, :], mask=c_ok[:, None] & r_ok[None, :], other=0.0)
        inner = tl.load(before + token * RANK + r, mask=r_ok, other=0.0).to(tl.float32)
        inner += tl.load(state + own * RANK + r, mask=r_ok, other=0.0)
        inner = inner / (1 + tl.exp(-inner))
        pull = tl.sum(ends.to(tl.float32) * inner[None, :], 1) / heat
        at = tl.argmax(score + pull, 0)
        token = tl.sum(tl.where(c == at, ids, 0), 0)
        first = tl.load(first_sure + m).to(tl.float32)
        best = tl.max(tl.where(c == 0, logit, -float("inf")), 0)
        weight = logit - best + tl.log(first)
        rest = tl.maximum(1 - tl.sum(tl.exp(weight), 0), 0.0)
        share = tl.exp(weight + pull)
        found = tl.sum(tl.where(c == at, share, 0.0), 0) / (rest + tl.sum(share, 0))
        found = tl.where(first > 0, found, 0.0)
        if BLOCK:
            own_choice = tl.load(clean + own)
            tied = (k > run) & (own_choice >= 0)
            tl.store(drafted + own, tl.where(tied, token, own_choice))
            tl.store(sure + own, tl.where(tied, found, first))
            token = tl.where(tied, token, tl.maximum(own_choice, 0))
        else:
            tl.store(drafted + own, token)
            tl.store(sure + own, found)


def link(
    tables: Tables, slots: Slots, rows_R: Tensor, clean_RC: Tensor, kept_R: Tensor | None, hidden_ND: Tensor,
    index_M: Tensor, chosen: Chosen, width: int, mask_id: int, *, indexed: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Choices [R, width] and their confidence: of `verified` the drafts behind the `kept_R`-th choice of the clean
    columns, of `diffusion` (None) the columns of the block, whose plain choices `clean_RC` holds.

    `index_M` are their hidden rows; `chosen` speaks of all hidden rows if `indexed`, else of these.
    """
    assert chosen.listed is not None
    rank, d = tables.state_RD.shape
    overlap, device, listed = overlaps(rows_R.device), rows_R.device, chosen.listed
    state = torch.empty(len(index_M), rank, dtype=torch.float32, device=device)
    _state_kernel[(len(index_M), triton.cdiv(rank, 32))](
        hidden_ND, index_M, tables.state_RD, state,
        D=d, D_PAD=triton.next_power_of_2(d), RANK=rank, BLOCK_R=32, OVERLAP=overlap, num_warps=4, launch_pdl=overlap,
    )  # fmt: skip
    drafted = torch.empty(len(rows_R), width, dtype=torch.long, device=device)
    sure = torch.empty(len(rows_R), width, dtype=torch.float32, device=device)
    most = listed.token_MC.shape[1]
    _chain_kernel[(len(rows_R),)](
        rows_R, clean_RC, rows_R if kept_R is None else kept_R, index_M, *listed, chosen.choice.confidence_M, state,
        tables.before_VR, tables.out_VR, slots.temperature, slots.ahead, drafted, sure,
        clean_RC.stride(0), slots.ahead.stride(0), mask_id,
        BLOCK=kept_R is None, K_PAD=pad(width), WIDTH=width, INDEXED=indexed, LISTED=most, C_PAD=pad(most),
        RANK=rank, R_PAD=pad(rank), OVERLAP=overlap, num_warps=4, launch_pdl=overlap,
    )  # fmt: skip
    return drafted, sure
