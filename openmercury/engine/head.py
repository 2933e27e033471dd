"""From the hidden rows of a forward to choices: logits, what repetition costs, what a grammar allows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from openmercury.diffusion.chain import Shortlist, shortlist
from openmercury.diffusion.sample import (
    Choice,
    Penalties,
    RowParams,
    Sampling,
    choose_scored,
    penalise,
    restrict,
    scores,
)
from openmercury.model.transformer import Transformer


class Chosen(NamedTuple):
    """A choice of each row and, where they are wanted, what it was chosen from."""

    choice: Choice
    listed: Shortlist | None

    def view(self, *shape: int) -> Chosen:
        """Rows in this shape."""
        listed = None
        if self.listed is not None:
            listed = Shortlist(*(each.view(shape[0], -1, each.shape[-1]) for each in self.listed))
        return Chosen(Choice(*(field.view(shape) for field in self.choice)), listed)


def _joined(parts: Sequence[Chosen], dim: int) -> Chosen:
    choice = Choice(*(torch.cat(field, dim) for field in zip(*(part.choice for part in parts), strict=True)))
    lists = [part.listed for part in parts if part.listed is not None]
    return Chosen(choice, Shortlist(*(torch.cat(field, dim) for field in zip(*lists, strict=True))) if lists else None)


class Head(NamedTuple):
    """Computes logits of `most` rows at a time, which is all that is ever stored of them."""

    model: Transformer
    most: int
    sampling: Sampling
    statistics: bool

    def choose(
        self,
        hidden_RMD: Tensor,
        params: RowParams,
        penalties: Penalties | None,
        allowed_RCW: Tensor | None,
        listed: int = 0,
    ) -> Chosen:
        """M choices of each of R rows, and shortlists of the last `listed` columns. The first C columns, which are
        clean, choose among what is allowed (see `sample.restrict`); those behind draft freely."""
        r, m = hidden_RMD.shape[:2]
        c = 0 if allowed_RCW is None else allowed_RCW.shape[1]
        index_RM = torch.arange(r * m, device=hidden_RMD.device).view(r, m)
        column_RM = torch.arange(m, device=hidden_RMD.device).expand(r, -1)
        parts = []
        for begin, end in pairwise(sorted({0, c, m})):  # as few parts as can be: each reads the whole head
            n = index_RM[:, begin:end].flatten()
            counted = None if penalties is None else penalties.rows(n)
            words_NW = None if allowed_RCW is None or begin >= c else allowed_RCW[:, begin:end].flatten(0, 1)
            wanted_N = None if end <= m - listed else (column_RM[:, begin:end] >= m - listed).flatten()
            part = self.choose_rows(hidden_RMD.flatten(0, 1)[n], params.rows(n), counted, words_NW, wanted_N)
            parts.append(part.view(r, end - begin))
        return _joined(parts, 1)

    def choose_rows(
        self,
        hidden_ND: Tensor,
        params: RowParams,
        penalties: Penalties | None,
        allowed_NW: Tensor | None,
        listed_N: Tensor | None,
    ) -> Chosen:
        """A choice of each row, among what is allowed to it, and the shortlists of some."""
        parts = []
        for begin in range(0, len(hidden_ND), self.most):
            rows = slice(begin, begin + self.most)
            logits_NV = self.model.logits(hidden_ND[rows])
            if penalties is not None:
                logits_NV = penalise(logits_NV, penalties.rows(rows))
            if allowed_NW is not None:
                logits_NV = restrict(logits_NV, allowed_NW[rows])
            scored = scores(logits_NV, params.rows(rows), self.sampling)
            choice = choose_scored(*scored, params.rows(rows), statistics=self.statistics)
            listed = None if listed_N is None else shortlist(*(x[listed_N[rows]] for x in scored))
            parts.append(Chosen(choice, listed))
        return _joined(parts, 0)
