"""The three ways to decode, each as two tensor functions: what rows ask of a forward, and what they learn from it.

Predictions come shifted: the row of position i chooses the token of position i + 1. So the last committed token gives
the next one exactly, and a noisy group of g positions that starts at s drafts the tokens of s + 1 ‥ s + g.

    ar          clean t(b−1)
    verified    clean t(b−1) d(b) d(b+1)                group 0 at b ‥  group 1 at b+1 ‥  group 2 at b+2 ‥,
                                                        or only behind the lengths at which the draft is likely cut off
    copied      clean t(b−1) d(b) d(b+1)                none: the host gives the drafts
    diffusion   clean t(b−1) and the settled run        group 0 behind it: masks and settled tokens

All rows of a forward share one mode and shape, and nothing here waits for the device, so a whole step can be captured
in a CUDA graph. `columns` is how many clean columns to plan for: on the CPU the largest any row needs, since every
position costs; in a graph the most there can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.diffusion.sample import NO_TOKEN, Choice
from openmercury.diffusion.unmask import accept
from openmercury.diffusion.verify import UNUSED, accepted_length, likely_lengths, standing_length
from openmercury.engine.expected import COPY_WIDTH
from openmercury.engine.params import DecodeMode
from openmercury.engine.state import RUNNING, Committed, Slots
from openmercury.engine.widths import MOST_GROUPS, Groups, group_count, positions
from openmercury.model.masks import CLEAN

NOWHERE = -2  # group of a padding position


class Shape(NamedTuple):
    """What the rows of a forward have in common. `width`: the widest block or draft among them."""

    mode: DecodeMode
    width: int
    groups: Groups | Literal["none"] = "all"  # a number: behind so many likely lengths
    penalised: bool = False  # does any of them count what it has said?
    constrained: bool = False  # may the clean columns choose only what a grammar allows?

    @property
    def most_committed(self) -> int:
        """Tokens a row can gain in one forward."""
        return self.width + 1 if self.mode == "verified" else self.width

    @property
    def positions(self) -> int:
        """Positions of a row in a forward, at most."""
        if self.mode != "verified":
            return self.width
        return positions(self.width, self.group_count)

    @property
    def group_count(self) -> int:
        """Noisy groups of a row in a forward of `verified`, at most."""
        return 0 if self.groups == "none" else group_count(self.width, self.groups)

    @property
    def likely(self) -> bool:
        """Do groups stand behind likely lengths, which take the confidence of drafts to find?"""
        return isinstance(self.groups, int)

    @property
    def noisy(self) -> bool:
        """Has a forward noisy positions?"""
        return self.mode != "ar" and self.groups != "none"

    @property
    def most_columns(self) -> int:
        """Clean columns that are always enough."""
        return self.width + 1 if self.mode == "verified" else self.width


COPIED = Shape("verified", COPY_WIDTH, "none")  # drafts copied from the text that a request expects

# The tokens before some columns (NO_TOKEN: what the column before chooses) and these columns, [R, G] each → what they
# choose, knowing the token before, and their confidence: `chain.Linker`.
Link = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Columns = tuple[Tensor, Tensor, Tensor, Tensor]  # (ids, position, end, group), each [R, columns]


class ForwardBatch(NamedTuple):
    """One forward: [R, Q] tensors under the rule of `masks`; `want_RM` are the columns whose predictions are read."""

    ids_RQ: Tensor
    position_RQ: Tensor
    end_RQ: Tensor
    group_RQ: Tensor
    want_RM: Tensor


def needed_columns(slots: Slots, rows: Tensor, shape: Shape) -> int:
    """The fewest clean columns that serve all rows now (waits for the device)."""
    if shape.mode == "verified":
        return 1 + int(_drafts(slots, rows, shape).max())
    return shape.most_columns


def plan(slots: Slots, rows: Tensor, shape: Shape, columns: int, mask_id: int) -> ForwardBatch:
    """What the rows ask of the next forward. A finished row asks for nothing: all its positions are padding."""
    planner = {"ar": _plan_ar, "verified": _plan_verified, "diffusion": _plan_diffusion}[shape.mode]
    batch = planner(slots, rows, shape, columns, mask_id)
    active = (slots.done[rows] == RUNNING)[:, None]
    return batch._replace(
        end_RQ=torch.where(active, batch.end_RQ, 0), group_RQ=torch.where(active, batch.group_RQ, NOWHERE)
    )


def apply(
    slots: Slots,
    rows: Tensor,
    shape: Shape,
    batch: ForwardBatch,
    choice: Choice,
    mask_id: int,
    link: Link | None = None,
) -> None:
    """Take the choices [R, M] of a finished forward into the slots. With a `link` drafts know the token before them."""
    active = slots.done[rows] == RUNNING
    slots.forwards[rows] += active.long()
    if shape.mode == "ar":
        slots.written[rows] = slots.length[rows]
        slots.ahead_count.index_fill_(0, rows, 0)  # drafts of an earlier forward in another mode
        slots.commit(rows, Committed(choice.token_M, torch.ones_like(rows)))
    elif shape.mode == "verified":
        _apply_verified(slots, rows, shape, batch, choice, link)
    else:
        _apply_diffusion(slots, rows, shape, choice, mask_id, link)


def _clean(slots: Slots, rows: Tensor, start_R: Tensor, count_R: Tensor, columns: int) -> Columns:
    """`count_R` committed tokens from `start_R` on, as (ids, position, end, group)."""
    column = torch.arange(columns, device=rows.device)
    position = start_R[:, None] + column
    valid = column < count_R[:, None]
    ids = slots.text[rows[:, None], position.clamp(max=slots.text.shape[1] - 1)].long()
    return ids, position, torch.where(valid, position + 1, 0), torch.where(valid, CLEAN, NOWHERE)


def plan_prefill(slots: Slots, rows: Tensor, start_R: Tensor, count_R: Tensor, columns: int) -> ForwardBatch:
    """Committed tokens to write, `count_R` from `start_R` on; no predictions are wanted."""
    return ForwardBatch(*_clean(slots, rows, start_R, count_R, columns), rows.new_empty(len(rows), 0))


def _joined(clean: Columns, noisy: Columns) -> Columns:
    """Clean columns, then noisy ones ([R, groups, width] is flattened)."""
    ids, position, end, group = (torch.cat((a, b.flatten(1)), dim=1) for a, b in zip(clean, noisy, strict=True))
    return ids, position, end, group


def _plan_ar(slots: Slots, rows: Tensor, shape: Shape, columns: int, mask_id: int) -> ForwardBatch:
    parts = _clean(slots, rows, slots.length[rows] - 1, torch.ones_like(rows), 1)
    return ForwardBatch(*parts, torch.zeros_like(rows)[:, None])


def _plan_diffusion(slots: Slots, rows: Tensor, shape: Shape, columns: int, mask_id: int) -> ForwardBatch:
    """Column 0 is the last committed token, column 1 + i block position i: clean in the settled run, noisy behind it.

    The last position of the block is predicted, not read.
    """
    length, k = slots.length[rows][:, None], shape.width
    ids = torch.cat((slots.text[rows].gather(1, length - 1).long(), slots.ahead[rows, : k - 1]), dim=1)
    column = torch.arange(k, device=rows.device).expand(len(rows), -1)
    valid = column < _room(slots, rows)
    run = _settled_run(slots.ahead[rows, :k], mask_id)[:, None]
    clean = column <= run
    position = length - 1 + column
    end = torch.where(clean, position + 1, length + run)
    group = torch.where(clean, CLEAN, 0)
    return ForwardBatch(ids, position, torch.where(valid, end, 0), torch.where(valid, group, NOWHERE), column)


def _room(slots: Slots, rows: Tensor) -> Tensor:
    """Positions of the block that may still become text, [R, 1]."""
    return torch.minimum(slots.width[rows], slots.limit[rows] - slots.length[rows])[:, None]


def _settled_run(block_RK: Tensor, mask_id: int) -> Tensor:
    """How many leading positions of the block are settled, [R]."""
    return (block_RK != mask_id).long().cumprod(-1).sum(-1)


def _apply_diffusion(slots: Slots, rows: Tensor, shape: Shape, choice: Choice, mask_id: int, link: Link | None) -> None:
    k = shape.width
    block, room = slots.ahead[rows, :k], _room(slots, rows)
    column = torch.arange(k, device=rows.device)
    inside = column < room
    settled = _settled_run(block, mask_id)[:, None]
    if link is not None:  # row i chooses position i, and knows what stands before it
        given = F.pad(torch.where(block[:, :-1] == mask_id, NO_TOKEN, block[:, :-1]), (1, 0), value=NO_TOKEN)
        given = torch.where(column == settled + 1, choice.token_M.roll(1, 1), given)  # the clean side's choice
        token, sure = link(given, column.expand_as(block))
        noisy = (column > settled) & (choice.token_M != NO_TOKEN)
        choice = choice._replace(
            token_M=torch.where(noisy, token, choice.token_M),
            confidence_M=torch.where(noisy, sure, choice.confidence_M),
        )
    run = torch.minimum(settled, room)
    kept = standing_length(choice.odds_M, column < run, slots.edit_below[rows])[:, None]
    take = accept(choice.confidence_M, choice.entropy_M, (block == mask_id) & inside, slots.policy(rows))
    advanced = torch.where(take, choice.token_M, block)
    edited = torch.where(column < kept, block, torch.where(column == kept, choice.token_M, mask_id))
    block = torch.where(kept == run, advanced, edited)
    gained = torch.minimum(kept + 1, room)
    slots.commit(rows, Committed(block, gained[:, 0]))
    slots.written[rows] = slots.length[rows] - 1
    shifted = column + gained
    moved = block.gather(1, shifted.clamp(max=k - 1))
    slots.ahead[rows, :k] = torch.where((shifted < room) & (moved != NO_TOKEN), moved, mask_id)


def _drafts(slots: Slots, rows: Tensor, shape: Shape) -> Tensor:
    """How many drafts to verify, [R]. There may be more than the shape holds, from a forward of a wider one."""
    return slots.ahead_count[rows].clamp(max=shape.width)


def _plan_verified(slots: Slots, rows: Tensor, shape: Shape, columns: int, mask_id: int) -> ForwardBatch:
    length, g = slots.length[rows], shape.width
    drafts, count = columns - 1, _drafts(slots, rows, shape)
    ids, position, end, group = _clean(slots, rows, length - 1, count + 1, columns)
    ids = torch.cat((ids[:, :1], slots.ahead[rows, :drafts]), dim=1)
    if shape.groups == "none":
        want = torch.arange(columns, device=rows.device).expand(len(rows), -1)
        return ForwardBatch(ids, position, end, group, want)
    behind = _behind(slots, rows, shape, columns, count)
    index = torch.arange(g, device=rows.device)
    # Behind `behind` drafts comes one exact token; drafts beyond the limit are not worth their positions.
    width = torch.minimum(slots.width[rows][:, None], slots.limit[rows][:, None] - length[:, None] - behind - 1)
    valid = (index < width[..., None]) & (behind <= count[:, None])[..., None]
    start = (length[:, None] + behind)[..., None].expand_as(valid)
    noisy = (
        torch.full_like(start, mask_id),
        start + index,
        torch.where(valid, start, 0),
        torch.where(valid, behind[..., None], NOWHERE),
    )
    want = torch.arange(columns + valid[0].numel(), device=rows.device).expand(len(rows), -1)
    return ForwardBatch(*_joined((ids, position, end, group), noisy), want)


def _behind(slots: Slots, rows: Tensor, shape: Shape, columns: int, count_R: Tensor) -> Tensor:
    """The lengths behind which groups stand, [R, groups]; no draft is cut off at more lengths than it has columns.

    Where there are no drafts, the likely lengths are those of older ones: a group stands behind the text alone.
    """
    if shape.groups == "last":
        return count_R[:, None]
    each = torch.arange(min(shape.group_count, columns), device=rows.device)
    if not shape.likely:
        return each.expand(len(rows), -1)
    return torch.where(count_R[:, None] > 0, slots.behind[rows, : len(each)], torch.where(each == 0, 0, UNUSED))


def _apply_verified(
    slots: Slots, rows: Tensor, shape: Shape, batch: ForwardBatch, choice: Choice, link: Link | None
) -> None:
    g, token_RM = shape.width, choice.token_M
    groups = min(shape.group_count, token_RM.shape[1] // (g + 1))  # there are no more than clean columns
    columns = token_RM.shape[1] - groups * g
    length, count = slots.length[rows], _drafts(slots, rows, shape)
    drafts = slots.ahead[rows, : columns - 1]
    index = torch.arange(columns - 1, device=rows.device)
    kept = accepted_length(torch.where(index < count[:, None], drafts, -1), token_RM[:, : columns - 1])
    committed = slots.commit(rows, Committed(token_RM[:, :columns], kept + 1))
    slots.written[rows] = torch.minimum(length + kept, length + committed - 1)
    if not groups:
        slots.ahead_count.index_fill_(0, rows, 0)
        return
    # The next drafts: choices of the group that stands behind the kept ones, if there is one.
    pick = (_behind(slots, rows, shape, columns, count) == kept[:, None]).long().argmax(-1)
    at = pick[:, None] * g + torch.arange(g, device=rows.device)
    drafted, sure = token_RM[:, columns:].gather(1, at), choice.confidence_M[:, columns:].gather(1, at)
    if link is not None:
        given = torch.full_like(at, NO_TOKEN)
        given[:, 0] = token_RM.gather(1, kept[:, None])[:, 0]
        drafted, sure = link(given, columns + at)
    usable = (batch.group_RQ[:, columns:].gather(1, at) == kept[:, None]).sum(-1)
    slots.ahead[rows, :g] = drafted.clamp(min=0)  # NO_TOKEN has no embedding; any draft is checked
    usable = torch.minimum(usable, (slots.limit[rows] - slots.length[rows]).clamp(min=0))
    slots.ahead_count[rows] = usable
    if shape.likely:
        lengths = likely_lengths(sure, usable, shape.group_count)
        slots.behind[rows] = F.pad(lengths, (0, MOST_GROUPS - shape.group_count), value=UNUSED)
