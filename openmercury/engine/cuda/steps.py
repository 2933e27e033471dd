"""What rows ask of a forward and what they learn from it, as one kernel each: the CUDA form of `engine.modes`.

Written over the fields of `state.Slots`; `modes.plan`, `modes.apply` and `Slots.commit` are the plain twins, which
explain the rules.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from openmercury.diffusion import verify
from openmercury.diffusion.sample import Choice
from openmercury.engine import widths
from openmercury.engine.cuda.attention import Layout
from openmercury.engine.cuda.launch import after_last_kernel, overlaps, pad
from openmercury.engine.cuda.network import Stream, block_d
from openmercury.engine.modes import Shape
from openmercury.engine.state import MAX_STOP_IDS, Slots
from openmercury.model.transformer import Transformer

AR, VERIFIED, DIFFUSION, PREFILL = 0, 1, 2, 3
KINDS = {"ar": AR, "verified": VERIFIED, "diffusion": DIFFUSION}
# Values of `state` and `masks` as the kernels know them.
RUNNING, STOP, LENGTH, FAILED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
CLEAN, NOWHERE = tl.constexpr(-1), tl.constexpr(-2)
UNUSED, MOST_GROUPS = tl.constexpr(verify.UNUSED), tl.constexpr(widths.MOST_GROUPS)


@triton.jit
def first_mask(ahead, width, K_PAD: tl.constexpr, mask_id):
    """How many leading positions of an active block are settled."""
    j = tl.arange(0, K_PAD)
    token = tl.load(ahead + j, mask=j < width, other=0)
    return tl.min(tl.where((token == mask_id) & (j < width), j, width), 0)


@triton.jit
def _behind(behind, drafts, t):
    """Behind how many drafts the groups `t` stand, where these are likely lengths: `modes._behind`."""
    return tl.where(drafts > 0, tl.load(behind + t), tl.where(t == 0, 0, UNUSED))


@triton.jit
def _group_of(behind, drafts, kept, GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr):
    """The group that stands behind `kept` drafts, and whether there is one."""
    t = tl.arange(0, GROUPS_PAD)
    here = tl.where(t < GROUPS, _behind(behind, drafts, tl.minimum(t, GROUPS - 1)), UNUSED) == kept
    first = tl.min(tl.where(here, t, GROUPS), 0)
    return tl.where(first < GROUPS, first, 0).to(tl.int64), first < GROUPS


@triton.jit
def _plan_kernel(
    rows, start_R, count_R, text, length, limit, done, width, ahead, ahead_count, behind_SG, pages,
    embedding, mask_vector, x, square, position, end, group, slot, gate, proposal,
    columns, tiles, text_stride, ahead_stride, behind_stride, pages_stride, last_position, mask_id,
    KIND: tl.constexpr, LAST: tl.constexpr, LIKELY: tl.constexpr, WIDTH: tl.constexpr, K_PAD: tl.constexpr,
    PAGE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, TILES_PAD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: one position → where it stands, what it sees, its embedding. KIND and WIDTH are the shape's."""
    after_last_kernel(OVERLAP)
    n = tl.program_id(0)
    r, c = n // columns, n % columns
    s = tl.load(rows + r)
    long = tl.load(length + s)
    active = tl.load(done + s) == RUNNING
    text_s, ahead_s = text + s * text_stride, ahead + s * ahead_stride
    stands = mask_id
    if KIND == 3:  # PREFILL
        start = tl.load(start_R + r)
        where = start + c
        valid = c < tl.load(count_R + r)
        token = tl.load(text_s + tl.minimum(where, text_stride - 1)).to(tl.int64)
        own = CLEAN
        until = where + 1
    elif KIND == 0:  # AR
        where = long - 1
        valid = active
        token = tl.load(text_s + where).to(tl.int64)
        own = CLEAN
        until = where + 1
    elif KIND == 1:  # VERIFIED
        drafts = tl.minimum(tl.load(ahead_count + s), WIDTH)
        room = tl.load(limit + s) - long
        if c <= WIDTH:
            where = long - 1 + c
            valid = active & (c <= drafts)
            token = tl.load(text_s + long - 1).to(tl.int64)
            if c > 0:
                token = tl.load(ahead_s + c - 1)
            own = CLEAN
            until = where + 1
        else:
            i = (c - WIDTH - 1) % WIDTH
            behind = drafts if LAST else (c - WIDTH - 1) // WIDTH + drafts * 0
            if LIKELY:
                behind = _behind(behind_SG + s * behind_stride, drafts, behind)
            wide = tl.minimum(tl.load(width + s), room - behind - 1)
            valid = active & (i < wide) & (behind <= drafts)
            until = long + behind
            where = until + i
            token = drafts * 0 + mask_id
            own = behind.to(tl.int32)
    else:  # DIFFUSION
        room = tl.minimum(tl.load(width + s), tl.load(limit + s) - long)
        run = first_mask(ahead_s, WIDTH, K_PAD, mask_id)
        valid = active & (c < room)
        where = long - 1 + c
        token = tl.load(text_s + long - 1).to(tl.int64)
        if c > 0:
            token = tl.load(ahead_s + c - 1)
        own = tl.where(c <= run, CLEAN, 0)
        until = tl.where(c <= run, where + 1, long + run)
        stands = tl.load(ahead_s + c).to(tl.int32)
    where = tl.minimum(where, last_position)
    own = tl.where(valid, own, NOWHERE)
    page = tl.load(pages + s * pages_stride + where // PAGE).to(tl.int64)
    tl.store(position + n, where.to(tl.int32))
    tl.store(end + n, tl.where(valid, until, 0).to(tl.int32))
    tl.store(group + n, own)
    tl.store(slot + n, tl.where(own == CLEAN, page * PAGE + where % PAGE, 0))
    tl.store(gate + n, (own >= 0).to(tl.int8))
    tl.store(proposal + n, stands)
    d = tl.arange(0, D_PAD)
    vector = tl.load(embedding + token * D + d, mask=d < D, other=0.0)
    if KIND == 1 or KIND == 2:
        masked = (own >= 0) & (token == mask_id)
        if masked:
            vector = tl.load(mask_vector + d, mask=d < D, other=0.0).to(vector.dtype)
    tl.store(x + n.to(tl.int64) * D + d, vector, mask=d < D)
    # The norm of the first layer sums the squares of tiles: here one tile holds all.
    t = tl.arange(0, TILES_PAD)
    whole = tl.sum(vector.to(tl.float32) * vector.to(tl.float32), 0)
    tl.store(square + n * tiles + t, tl.where(t == 0, whole, 0.0), mask=t < tiles)


@triton.jit
def _commit(s, token, count, text, length, limit, done, stop, text_stride, C_PAD: tl.constexpr, STOPS: tl.constexpr):
    """`Slots.commit` of one row: append up to `count` tokens, to the first stop id or the limit; returns how many."""
    c, k = tl.arange(0, C_PAD), tl.arange(0, STOPS)
    long, most, state = tl.load(length + s), tl.load(limit + s), tl.load(done + s)
    offered = (c < count) & (state == RUNNING) & (long + c < most)
    stops = tl.load(stop + s * STOPS + k)
    # Stop ids are padded with −1, which as a token says that there is none.
    ends = (tl.max((token[:, None] == stops[None, :]).to(tl.int32), 1) > 0) & offered & (token >= 0)
    first_end = tl.min(tl.where(ends, c, C_PAD), 0)
    first_broken = tl.min(tl.where((token < 0) & offered, c, C_PAD), 0)
    keep = offered & (c <= first_end) & (c < first_broken)
    tl.store(text + s * text_stride + long + c, token.to(tl.int32), mask=keep)
    gained = tl.sum(keep.to(tl.int64), 0)
    long += gained
    state = tl.where((long >= most) & (state == RUNNING), LENGTH, state)
    tl.store(length + s, long)
    state = tl.where(first_broken < first_end, FAILED, state)
    tl.store(done + s, tl.where(first_end < first_broken, STOP, state))
    return gained


@triton.jit
def _accept_kernel(
    rows, ahead, ahead_count, behind_SG, token, index, kept, ahead_stride, behind_stride, token_stride, columns,
    LAST: tl.constexpr, LIKELY: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr,
    C_PAD: tl.constexpr, G_PAD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: how many drafts of one row stand, and the hidden rows of the group behind them, [WIDTH].

    `token` holds the choices of its WIDTH + 1 clean columns, rows `token_stride` apart; these columns come first among
    the row's positions. Where no group stands behind the drafts, any is named.
    """
    after_last_kernel(OVERLAP)
    r = tl.program_id(0)
    s = tl.load(rows + r)
    c, i = tl.arange(0, C_PAD), tl.arange(0, G_PAD)
    drafts = tl.minimum(tl.load(ahead_count + s), WIDTH)
    draft = tl.load(ahead + s * ahead_stride + c, mask=c < WIDTH, other=0)
    chosen = tl.load(token + r * token_stride + c, mask=c < WIDTH, other=0)
    stand = tl.min(tl.where((c < drafts) & (draft == chosen), C_PAD, c), 0)
    tl.store(kept + r, stand)
    group = stand.to(tl.int64)
    if LAST:
        group = group * 0
    if LIKELY:
        group, _ = _group_of(behind_SG + s * behind_stride, drafts, group, GROUPS, GROUPS_PAD)
    first = r * columns + WIDTH + 1 + group * WIDTH
    tl.store(index + r * WIDTH + i, first + i, mask=i < WIDTH)


@triton.jit
def _apply_verified_kernel(
    rows, token, drafted, sure, text, length, written, limit, done, forwards, width, ahead, ahead_count, behind_SG,
    stop, text_stride, ahead_stride, behind_stride, token_stride, drafted_stride, sure_stride,
    WIDTH: tl.constexpr, LAST: tl.constexpr, NONE: tl.constexpr, LIKELY: tl.constexpr, PICKED: tl.constexpr,
    GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr,
    C_PAD: tl.constexpr, G_PAD: tl.constexpr, STOPS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: one row. `drafted` holds the choices of all its groups, or of the one behind the kept if PICKED.

    With NONE there are no groups, and nobody reads what `drafted` holds. `sure` is the confidence of `drafted`, which
    LIKELY reads alone.
    """
    after_last_kernel(OVERLAP)
    r = tl.program_id(0)
    s = tl.load(rows + r)
    c, i = tl.arange(0, C_PAD), tl.arange(0, G_PAD)
    drafts, long, active = (
        tl.minimum(tl.load(ahead_count + s), WIDTH),
        tl.load(length + s),
        tl.load(done + s) == RUNNING,
    )
    draft = tl.load(ahead + s * ahead_stride + c, mask=c < WIDTH, other=0)
    chosen = tl.load(token + r * token_stride + c, mask=c <= WIDTH, other=0)
    kept = tl.min(tl.where((c < drafts) & (draft == chosen), C_PAD, c), 0).to(tl.int64)
    group = kept
    if LIKELY:
        group, stands = _group_of(behind_SG + s * behind_stride, drafts, kept, GROUPS, GROUPS_PAD)
    if LAST or NONE or PICKED:
        group = kept * 0
    coming = tl.load(drafted + r * drafted_stride + group * WIDTH + i, mask=i < WIDTH, other=0)
    wide = tl.minimum(tl.load(width + s), tl.load(limit + s) - long - kept - 1)
    usable = tl.minimum(tl.maximum(wide, 0), WIDTH)
    if LAST:
        usable = tl.where(kept == drafts, usable, 0)
    if LIKELY:
        usable = tl.where(stands, usable, 0)
    if NONE:
        usable = usable * 0
    gained = _commit(s, chosen, kept + 1, text, length, limit, done, stop, text_stride, C_PAD, STOPS)
    left = tl.maximum(tl.load(limit + s) - long - gained, 0)
    if active:
        tl.store(written + s, tl.minimum(long + kept, long + gained - 1))
        tl.store(ahead + s * ahead_stride + i, tl.maximum(coming, 0), mask=i < WIDTH)
        tl.store(ahead_count + s, tl.minimum(usable, left))
        tl.store(forwards + s, tl.load(forwards + s) + 1)
        if LIKELY:
            at = sure + r * sure_stride + group * WIDTH
            lengths = _likely_lengths(at, tl.minimum(usable, left), WIDTH, GROUPS, C_PAD, G_PAD)
            tl.store(behind_SG + s * behind_stride + tl.arange(0, MOST_GROUPS), lengths)


@triton.jit
def _likely_lengths(
    sure, count, WIDTH: tl.constexpr, GROUPS: tl.constexpr, C_PAD: tl.constexpr, G_PAD: tl.constexpr,
):  # fmt: skip
    """`verify.likely_lengths` of one row, [MOST_GROUPS]. Ranks are counted over all pairs of lengths."""
    c, i, t = tl.arange(0, C_PAD), tl.arange(0, G_PAD), tl.arange(0, MOST_GROUPS)
    logs = tl.log(tl.clamp(tl.load(sure + i, mask=i < WIDTH, other=1.0), 1e-30, 1.0))
    own = tl.log(tl.clamp(tl.load(sure + c, mask=c < WIDTH, other=1.0), 1e-30, 1.0))
    before = tl.exp(tl.sum(tl.where(i[None, :] < c[:, None], logs[None, :], 0.0), 1))
    score = tl.where(c <= count, before * tl.where(c == count, 1.0, 1.0 - tl.exp(own)), -1.0)
    ahead_of = (score[None, :] > score[:, None]) | ((score[None, :] == score[:, None]) & (c[None, :] < c[:, None]))
    chosen = (tl.sum(ahead_of.to(tl.int32), 1) < GROUPS) & (c <= count)
    place = tl.sum((chosen[None, :] & (c[None, :] < c[:, None])).to(tl.int32), 1)
    here = chosen[None, :] & (place[None, :] == t[:, None])
    found = tl.sum(tl.where(here, c[None, :], 0), 1)
    return tl.where(tl.sum(here.to(tl.int32), 1) > 0, found, UNUSED).to(tl.int64)


@triton.jit
def _apply_ar_kernel(
    rows, token, text, length, written, limit, done, forwards, ahead_count, stop, text_stride,
    STOPS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: one row takes one token. Drafts it held belong to an older text."""
    after_last_kernel(OVERLAP)
    r = tl.program_id(0)
    s = tl.load(rows + r)
    long, active = tl.load(length + s), tl.load(done + s) == RUNNING
    chosen = tl.load(token + r) + tl.zeros([2], tl.int64)
    _commit(s, chosen, 1, text, length, limit, done, stop, text_stride, 2, STOPS)
    if active:
        tl.store(written + s, long)
        tl.store(ahead_count + s, long * 0)
        tl.store(forwards + s, tl.load(forwards + s) + 1)


@triton.jit
def _apply_diffusion_kernel(
    rows, token, confidence, entropy, odds, text, length, written, limit, done, forwards, width, ahead, stop,
    threshold, quota, entropy_bound, edit_below, text_stride, ahead_stride, mask_id,
    WIDTH: tl.constexpr, K_PAD: tl.constexpr, STOPS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: one row. Ranks among the K positions of a block are counted over all pairs, [K, K]."""
    after_last_kernel(OVERLAP)
    r = tl.program_id(0)
    s = tl.load(rows + r)
    i = tl.arange(0, K_PAD)
    inside_k = i < WIDTH
    long, active = tl.load(length + s), tl.load(done + s) == RUNNING
    room = tl.minimum(tl.load(width + s), tl.load(limit + s) - long)
    block = tl.load(ahead + s * ahead_stride + i, mask=inside_k, other=0)
    at = r * WIDTH + i
    chosen = tl.load(token + at, mask=inside_k, other=0)
    sure = tl.load(confidence + at, mask=inside_k, other=0.0)
    doubt = tl.load(entropy + at, mask=inside_k, other=float("inf"))
    ratio = tl.load(odds + at, mask=inside_k, other=0.0)
    run = tl.minimum(tl.min(tl.where((block == mask_id) & inside_k, i, WIDTH), 0), room)
    kept = tl.min(tl.where((i < run) & (ratio >= tl.load(edit_below + s)), K_PAD, i), 0)
    # `unmask.accept`
    masked = (block == mask_id) & (i < room) & inside_k
    first = masked & (i == tl.min(tl.where(masked, i, K_PAD), 0))
    score = tl.where(first, float("inf"), tl.where(masked, sure, -1.0))
    ahead_of = (score[None, :] > score[:, None]) | ((score[None, :] == score[:, None]) & (i[None, :] < i[:, None]))
    rank = tl.sum((ahead_of & masked[None, :]).to(tl.int32), 1)
    logs = tl.where(masked, tl.log(tl.maximum(sure, 1e-38)), 0.0)
    joint = tl.exp(logs + tl.sum(tl.where(ahead_of & masked[None, :], logs[None, :], 0.0), 1))
    calm = tl.where(first, 0.0, tl.where(masked, doubt, float("inf")))
    calmer = (calm[None, :] < calm[:, None]) | ((calm[None, :] == calm[:, None]) & (i[None, :] < i[:, None]))
    before = tl.sum(tl.where(calmer & masked[None, :], calm[None, :], 0.0), 1)
    take = (joint > tl.load(threshold + s)) | (rank < tl.load(quota + s)) | first
    take |= (before <= tl.load(entropy_bound + s)) & (calm < float("inf"))
    advanced = tl.where(take & masked, chosen, block)
    edited = tl.where(i < kept, block, tl.where(i == kept, chosen, mask_id))
    block = tl.where(kept == run, advanced, edited)
    gained = tl.minimum(kept + 1, room)
    _commit(s, block, gained, text, length, limit, done, stop, text_stride, K_PAD, STOPS)
    here = i[None, :] == (i[:, None] + gained)
    moved = tl.sum(tl.where(here, block[None, :], 0), 1)
    if active:
        stays = (i + gained < room) & (moved >= 0)
        tl.store(ahead + s * ahead_stride + i, tl.where(stays, moved, mask_id), mask=inside_k)
        tl.store(written + s, tl.load(length + s) - 1)
        tl.store(forwards + s, tl.load(forwards + s) + 1)


@triton.jit
def _pack_kernel(
    rows, text, length, written, forwards, done, seen, out, most, text_stride,
    M_PAD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program: what one row gained since the host looked last → [4 + most] of `out`."""
    after_last_kernel(OVERLAP)
    r = tl.program_id(0)
    s = tl.load(rows + r)
    long, known = tl.load(length + s), tl.load(seen + s)
    to = out + r * (4 + most)
    tl.store(to, (long - known).to(tl.int32))
    tl.store(to + 1, tl.load(written + s).to(tl.int32))
    tl.store(to + 2, tl.load(forwards + s).to(tl.int32))
    tl.store(to + 3, tl.load(done + s).to(tl.int32))
    i = tl.arange(0, M_PAD)
    at = tl.minimum(known + i, text_stride - 1)
    tl.store(to + 4 + i, tl.load(text + s * text_stride + at, mask=i < most, other=0), mask=i < most)
    tl.store(seen + s, long)


class Planned(NamedTuple):
    """One forward on the device: embeddings, where they stand, the gate [N], the tokens that stand there [N]."""

    stream: Stream
    layout: Layout
    gate_N: Tensor
    proposal_N: Tensor


def plan(
    model: Transformer, slots: Slots, rows_R: Tensor, shape: Shape | int, mask_id: int, page: int,
    spans: tuple[Tensor, Tensor] | None = None,
) -> Planned:  # fmt: skip
    """`modes.plan` for a shape; for a number of columns `modes.plan_prefill` of `spans` = (start_R, count_R)."""
    config, device = model.config, rows_R.device
    kind, width, last, likely, columns = PREFILL, 1, False, False, shape
    if isinstance(shape, Shape):
        kind, width, last, columns = KINDS[shape.mode], shape.width, shape.groups == "last", shape.positions
        likely = shape.likely
    assert isinstance(columns, int)
    n, d = len(rows_R) * columns, config.d_model
    x = torch.empty(n, d, dtype=model.embedding.weight.dtype, device=device)
    tiles = triton.cdiv(d, block_d(n))
    square = torch.empty(n, tiles, dtype=torch.float32, device=device)
    position, end, group, proposal = (torch.empty(n, dtype=torch.int32, device=device) for _ in range(4))
    slot, gate = torch.empty(n, dtype=torch.long, device=device), torch.empty(n, dtype=torch.int8, device=device)
    start, count = spans or (rows_R, rows_R)
    overlap = overlaps(device)
    _plan_kernel[(n,)](
        rows_R, start, count, slots.text, slots.length, slots.limit, slots.done, slots.width, slots.ahead,
        slots.ahead_count, slots.behind, slots.pages, model.embedding.weight,
        model.embedding.weight[mask_id] if model.adapter is None else model.adapter.mask_vector,
        x, square, position, end, group, slot, gate, proposal,
        columns, tiles, slots.text.stride(0), slots.ahead.stride(0), slots.behind.stride(0), slots.pages.stride(0),
        config.max_context - 1, mask_id,
        KIND=kind, LAST=last, LIKELY=likely, WIDTH=width, K_PAD=pad(width), PAGE=page, D=d,
        D_PAD=triton.next_power_of_2(d), TILES_PAD=pad(tiles), OVERLAP=overlap, num_warps=1 if d <= 1024 else 4,
        launch_pdl=overlap,
    )  # fmt: skip
    return Planned(Stream(x, square), Layout(rows_R, columns, slots.pages, position, end, group, slot), gate, proposal)


def accept(slots: Slots, rows_R: Tensor, shape: Shape, token_RC: Tensor) -> tuple[Tensor, Tensor]:
    """How many drafts stand [R], given the choices [R, width + 1], and the hidden rows [R · width] of the group behind
    them."""
    width = shape.width
    index = torch.empty(len(rows_R) * width, dtype=torch.int32, device=rows_R.device)
    kept = torch.empty(len(rows_R), dtype=torch.int32, device=rows_R.device)
    overlap = overlaps(rows_R.device)
    _accept_kernel[(len(rows_R),)](
        rows_R, slots.ahead, slots.ahead_count, slots.behind, token_RC, index, kept, slots.ahead.stride(0),
        slots.behind.stride(0), token_RC.stride(0), shape.positions,
        LAST=shape.groups == "last", LIKELY=shape.likely, WIDTH=width, GROUPS=shape.group_count,
        GROUPS_PAD=pad(shape.group_count), C_PAD=pad(width + 1), G_PAD=pad(width), OVERLAP=overlap, num_warps=1,
        launch_pdl=overlap,
    )  # fmt: skip
    return kept, index


def apply_verified(
    slots: Slots, rows_R: Tensor, shape: Shape, token_RC: Tensor, drafted_RG: Tensor, sure_RG: Tensor, *, picked: bool
) -> None:
    """Take the choices of the clean columns and of the groups (of the one behind the kept drafts if `picked`).

    `sure_RG` is the confidence of these, where the shape's groups stand behind likely lengths; else anything.
    """
    overlap, width = overlaps(rows_R.device), shape.width
    _apply_verified_kernel[(len(rows_R),)](
        rows_R, token_RC, drafted_RG, sure_RG, slots.text, slots.length, slots.written, slots.limit, slots.done,
        slots.forwards, slots.width, slots.ahead, slots.ahead_count, slots.behind, slots.stop, slots.text.stride(0),
        slots.ahead.stride(0), slots.behind.stride(0), token_RC.stride(0), drafted_RG.stride(0), sure_RG.stride(0),
        WIDTH=width, LAST=shape.groups == "last", NONE=shape.groups == "none", LIKELY=shape.likely, PICKED=picked,
        GROUPS=max(1, shape.group_count), GROUPS_PAD=pad(max(1, shape.group_count)),
        C_PAD=pad(width + 1), G_PAD=pad(width), STOPS=MAX_STOP_IDS, OVERLAP=overlap, num_warps=1, launch_pdl=overlap,
    )  # fmt: skip


def apply_ar(slots: Slots, rows_R: Tensor, token_R: Tensor) -> None:
    """Take one token a row."""
    overlap = overlaps(rows_R.device)
    _apply_ar_kernel[(len(rows_R),)](
        rows_R, token_R, slots.text, slots.length, slots.written, slots.limit, slots.done, slots.forwards,
        slots.ahead_count, slots.stop, slots.text.stride(0),
        STOPS=MAX_STOP_IDS, OVERLAP=overlap, num_warps=1, launch_pdl=overlap,
    )  # fmt: skip


def apply_diffusion(slots: Slots, rows_R: Tensor, width: int, choice: Choice, mask_id: int) -> None:
    """Take the choices [R · width] of a denoising step."""
    overlap = overlaps(rows_R.device)
    _apply_diffusion_kernel[(len(rows_R),)](
        rows_R, choice.token_M, choice.confidence_M, choice.entropy_M, choice.odds_M, slots.text, slots.length,
        slots.written, slots.limit, slots.done, slots.forwards, slots.width, slots.ahead, slots.stop, slots.threshold,
        slots.quota, slots.entropy_bound, slots.edit_below, slots.text.stride(0), slots.ahead.stride(0), mask_id,
        WIDTH=width, K_PAD=pad(width), STOPS=MAX_STOP_IDS, OVERLAP=overlap, num_warps=1, launch_pdl=overlap,
    )  # fmt: skip


def pack(slots: Slots, rows_R: Tensor, most: int) -> Tensor:
    """What rows gained since the last call, at most `most` tokens each: [R, 4 + most] int32 (see `runner.Progress`)."""
    out = torch.empty(len(rows_R), 4 + most, dtype=torch.int32, device=rows_R.device)
    overlap = overlaps(rows_R.device)
    _pack_kernel[(len(rows_R),)](
        rows_R, slots.text, slots.length, slots.written, slots.forwards, slots.done, slots.seen, out, most,
        slots.text.stride(0), M_PAD=pad(most), OVERLAP=overlap, num_warps=1, launch_pdl=overlap,
    )  # fmt: skip
    return out
