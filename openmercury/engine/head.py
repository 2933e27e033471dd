"""From the hidden rows of a forward to choices: logits, what repetition costs, what a grammar allows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openmercury.diffusion.sample import Choice, Penalties, RowParams, Sampling, choose, penalise, restrict
from openmercury.model.transformer import Transformer


class Head(NamedTuple):
    """Computes logits of `most` rows at a time, which is all that is ever stored of them."""

    model: Transformer
    most: int
    sampling: Sampling
    statistics: bool

    def choose(
        self, hidden_RMD: Tensor, params: RowParams, penalties: Penalties | None, allowed_RCW: Tensor | None
    ) -> Choice:
        """M choices of each of R rows. The first C columns, which are clean, choose among what is allowed (see
        `sample.restrict`); those behind draft freely."""
        r, m = hidden_RMD.shape[:2]
        c = 0 if allowed_RCW is None else allowed_RCW.shape[1]
        index_RM = torch.arange(r * m, device=hidden_RMD.device).view(r, m)
        parts = []
        for index_RN, allowed in ((index_RM[:, :c], allowed_RCW), (index_RM[:, c:], None)):
            if index_RN.numel():
                n = index_RN.flatten()
                counted = None if penalties is None else penalties.rows(n)
                words_NW = None if allowed is None else allowed.flatten(0, 1)
                part = self.choose_rows(hidden_RMD.flatten(0, 1)[n], params.rows(n), counted, words_NW)
                parts.append([field.view(index_RN.shape) for field in part])
        return Choice(*(torch.cat(field, dim=1).flatten() for field in zip(*parts, strict=True)))

    def choose_rows(
        self, hidden_ND: Tensor, params: RowParams, penalties: Penalties | None, allowed_NW: Tensor | None
    ) -> Choice:
        """A choice of each row, among what is allowed to it."""
        parts = []
        for begin in range(0, len(hidden_ND), self.most):
            rows = slice(begin, begin + self.most)
            logits_NV = self.model.logits(hidden_ND[rows])
            if penalties is not None:
                logits_NV = penalise(logits_NV, penalties.rows(rows))
            if allowed_NW is not None:
                logits_NV = restrict(logits_NV, allowed_NW[rows])
            parts.append(choose(logits_NV, params.rows(rows), self.sampling, statistics=self.statistics))
        return Choice(*(torch.cat(field) for field in zip(*parts, strict=True)))
