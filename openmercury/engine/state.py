"""Decoding state of all running requests as tensors, one row a slot; it never leaves the device while they run.

`text` holds the committed tokens, `ahead` what stands behind them: in `diffusion` the active block (settled tokens and
masks), in `verified` the drafts under verification. Slot 0 belongs to nobody; padding rows of a forward point to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from openmercury.diffusion.sample import NO_TOKEN, Penalties, RowParams
from openmercury.diffusion.unmask import Policy
from openmercury.diffusion.verify import UNUSED
from openmercury.engine.widths import MOST_GROUPS

RUNNING, STOP, LENGTH, FAILED = 0, 1, 2, 3  # values of `done`
MAX_STOP_IDS = 16


class Committed(NamedTuple):
    """Tokens to append to each of R rows: the first `count_R` of `tokens_RC`."""

    tokens_RC: Tensor
    count_R: Tensor


# Fields of one number a slot are rows of two tensors, so that a request is written by few copies.
INTS = (
    "prompt", "length", "seen", "written", "limit", "done", "forwards", "width", "ahead_count", "top_k", "seed",
    "quota",
)  # fmt: skip
REALS = (
    "temperature", "top_p", "presence", "frequency", "repetition", "threshold", "entropy_bound", "edit_below",
)  # fmt: skip
OFF = {
    "prompt": 1, "length": 1, "seen": 1, "limit": 1, "done": LENGTH, "width": 1,
    "top_p": 1.0, "repetition": 1.0, "threshold": 2.0, "entropy_bound": -1.0,
}  # fmt: skip


@dataclass
class Slots:
    """Row tensors of S slots. Integers are int64, `text` int32; `written` counts tokens whose KV is in the cache."""

    ints: Tensor  # [len(INTS), S]
    reals: Tensor  # [len(REALS), S]
    text: Tensor  # [S, longest text + 1]; the last column takes writes that mean nothing
    prompt: Tensor  # the length it began with
    length: Tensor
    written: Tensor
    limit: Tensor  # the length at which the request ends
    seen: Tensor  # the length the host knows
    done: Tensor
    forwards: Tensor
    width: Tensor  # positions of a block or draft
    ahead: Tensor  # [S, widest]
    ahead_count: Tensor
    behind: Tensor  # [S, MOST_GROUPS]: likely lengths of what stands ahead, ascending; see `verify.likely_lengths`
    stop: Tensor  # [S, MAX_STOP_IDS]
    pages: Tensor  # [S, pages of the longest text]
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seed: Tensor
    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    threshold: Tensor
    quota: Tensor
    entropy_bound: Tensor
    edit_below: Tensor

    @classmethod
    def empty(cls, slots: int, longest: int, widest: int, pages: int, device: torch.device) -> Slots:
        """All slots finished and empty."""
        real = torch.float32
        ints = torch.zeros(len(INTS), slots, dtype=torch.long, device=device)
        reals = torch.zeros(len(REALS), slots, dtype=real, device=device)
        rows = dict(zip(INTS, ints, strict=True)) | dict(zip(REALS, reals, strict=True))
        for name, value in OFF.items():
            rows[name].fill_(value)
        return cls(
            ints=ints,
            reals=reals,
            text=torch.zeros(slots, longest + 1, dtype=torch.int32, device=device),
            ahead=torch.zeros(slots, widest, dtype=torch.long, device=device),
            behind=torch.full((slots, MOST_GROUPS), UNUSED, device=device),
            stop=torch.full((slots, MAX_STOP_IDS), NO_TOKEN, device=device),
            pages=torch.zeros(slots, pages, dtype=torch.int32, device=device),
            **rows,
        )

    def policy(self, rows: Tensor) -> Policy:
        """Unmask policies of some rows."""
        return Policy(self.threshold[rows], self.quota[rows], self.entropy_bound[rows])

    def sampling(self, rows: Tensor, position_RM: Tensor) -> RowParams:
        """Sampling parameters for M positions of each of some rows, flattened; proposed is what stands there."""
        spread = rows[:, None].expand_as(position_RM).flatten()
        ahead = (position_RM - self.length[rows, None]).clamp(0, self.ahead.shape[1] - 1)
        return RowParams(
            self.temperature[spread],
            self.top_k[spread],
            self.top_p[spread],
            self.seed[spread],
            position_RM.flatten(),
            self.ahead[rows].gather(1, ahead).flatten(),
        )

    def penalties(self, rows: Tensor, end_RM: Tensor, vocabulary: int) -> Penalties:
        """Penalties for M predictions of each of some rows; `end_RM` says how much clean text each of them sees."""
        text_RT, position_T = self.text[rows].long(), torch.arange(self.text.shape[1], device=rows.device)
        prompt_R1, length_R1 = self.prompt[rows, None], self.length[rows, None]

        def counts(begin: Tensor | int, end: Tensor) -> Tensor:
            inside = (position_T >= begin) & (position_T < end)
            return self.temperature.new_zeros(len(rows), vocabulary).scatter_add_(1, text_RT, inside.float())

        return Penalties(
            torch.arange(len(rows), device=rows.device)[:, None].expand_as(end_RM).flatten(),
            (end_RM - length_R1).flatten(),
            self.ahead[rows],
            counts(0, prompt_R1),
            counts(prompt_R1, length_R1),
            self.presence[rows],
            self.frequency[rows],
            self.repetition[rows],
        )

    def commit(self, rows: Tensor, new: Committed) -> Tensor:
        """Append tokens that can no longer change, up to the first stop id or the limit; returns how many, [R].

        NO_TOKEN fails the row; what stands before it is kept.
        """
        length_R, done_R = self.length[rows], self.done[rows]
        column_C = torch.arange(new.tokens_RC.shape[1], device=rows.device)
        offered = (column_C < new.count_R[:, None]) & (done_R == RUNNING)[:, None]
        offered &= length_R[:, None] + column_C < self.limit[rows][:, None]
        broken = (new.tokens_RC == NO_TOKEN) & offered
        ends = (new.tokens_RC[..., None] == self.stop[rows][:, None]).any(-1) & offered & ~broken
        keep = offered & (ends.cumsum(-1) - ends.long() == 0) & (broken.cumsum(-1) == 0)
        target = torch.where(keep, length_R[:, None] + column_C, self.text.shape[1] - 1)
        self.text[rows[:, None], target] = new.tokens_RC.clamp(min=0).to(self.text.dtype)
        count_R = keep.sum(-1)
        length_R = length_R + count_R
        at_limit = torch.where((length_R >= self.limit[rows]) & (done_R == RUNNING), LENGTH, done_R)
        self.length[rows] = length_R
        ended = torch.where((ends & keep).any(-1), STOP, at_limit)
        self.done[rows] = torch.where((ended == RUNNING) & broken.any(-1), FAILED, ended)
        return count_R
