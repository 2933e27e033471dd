"""Packed rows to batches, in an order that depends on seed and epoch only, with a state that resumes exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from openmercury.data.packing import Rows
from openmercury.errors import DataError


class Batch(NamedTuple):
    """tokens int64, loss mask bool and document number int64, each [B, L]."""

    tokens_BL: Tensor
    loss_mask_BL: Tensor
    document_BL: Tensor


class Loader:
    """Endless batches; an epoch visits each row once, and a ragged end is carried into the next epoch."""

    def __init__(self, rows: Rows, batch: int, seed: int, *, drawn: int = 0) -> None:
        if not len(rows.ids):
            raise DataError("the training data packs into no row: give more examples")
        self.rows, self.batch, self.seed = rows, batch, seed
        self.drawn = drawn  # rows handed out so far: the whole state
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def _row(self, number: int) -> int:
        epoch, index = divmod(number, len(self.rows.ids))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows.ids))
        return int(self._order[index])

    def next(self, device: torch.device) -> Batch:
        """The next batch on `device`."""
        chosen = [self._row(self.drawn + i) for i in range(self.batch)]
        self.drawn += self.batch
        ids, loss_mask, document = (torch.from_numpy(field[chosen]) for field in self.rows)
        return Batch(ids.long().to(device), loss_mask.to(device), document.long().to(device))
