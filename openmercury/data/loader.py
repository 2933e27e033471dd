"""Shards to batches of packed rows, in an order that depends on seed and epoch only; its state resumes exactly.

    folder ─ shards in an order drawn for the epoch ─ WINDOW of them packed ─ their rows in an order drawn for it
    mix    ─ the next row comes from the folder that is furthest behind its weight

Of each folder one window is held in memory. An epoch of a folder visits each of its rows once; the next begins behind
its last row, in the same batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openmercury.data.config import Source
from openmercury.data.packing import Packed, Rows, pack
from openmercury.data.shards import Manifest, read_manifest, read_shard
from openmercury.errors import DataError

WINDOW = 4  # shards whose rows are shuffled together


class Batch(NamedTuple):
    """tokens int64, loss mask bool and document number int64 (−1: empty), each [B, L]."""

    tokens_BL: Tensor
    loss_mask_BL: Tensor
    document_BL: Tensor


class Loader:
    """Endless batches from folders of shards.

    `state` is what `state()` gave, of a loader over the same data, row length and seed; the batch may differ. Raises
    DataError for broken shards, data that packs into no row, and a state of other data.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        row_length: int,
        batch: int,
        seed: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        assert sources, "name a folder"
        weights = np.array([source.weight for source in sources])
        self.batch, self.share = batch, weights / weights.sum()
        self.streams = [Stream(source.path, row_length, (seed, number)) for number, source in enumerate(sources)]
        told = "|".join([*(shard.sha256 for stream in self.streams for shard in stream.manifest.shards)])
        self._data = hashlib.sha256(f"{told}|{row_length}|{seed}|{weights.tolist()}".encode()).hexdigest()
        if state is not None:
            if state["data"] != self._data:
                raise DataError(
                    "the run was begun with other data, row length, weights or seed: restore them, or begin a new run"
                )
            for stream, place in zip(self.streams, state["streams"], strict=True):
                stream.go_to(**place)

    @property
    def manifests(self) -> list[Manifest]:
        """Of the folders, in order."""
        return [stream.manifest for stream in self.streams]

    @property
    def cut(self) -> float:
        """Share of the tokens that are in no row, for they lie beyond the end of one; of the shards held now."""
        held = [packed for stream in self.streams for packed in stream.packed.values()]
        return sum(packed.cut for packed in held) / max(1, sum(len(packed.examples.ids) for packed in held))

    def next(self, device: torch.device) -> Batch:
        """The next batch on `device`."""
        rows = [self._behind().next() for _ in range(self.batch)]
        ids, loss_mask, document = (torch.from_numpy(np.concatenate(field)) for field in zip(*rows, strict=True))
        return Batch(ids.to(device).long(), loss_mask.to(device), document.to(device).long())

    def _behind(self) -> Stream:
        """The folder that has given least of what its weight asks for: no batch strays from the mix by a row."""
        drawn = np.array([stream.drawn for stream in self.streams])
        return self.streams[int(np.argmax(self.share * (drawn.sum() + 1) - drawn))]

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, as JSON."""
        return {"data": self._data, "streams": [stream.place() for stream in self.streams]}


class Stream:
    """The rows of one folder without end. `packed` holds the window's shards by their number in the manifest."""

    def __init__(self, folder: Path, row_length: int, seed: tuple[int, int]) -> None:
        self.folder, self.row_length, self.seed = folder, row_length, seed
        self.manifest = read_manifest(folder)
        self.packed: dict[int, Packed] = {}
        self.go_to(epoch=0, window=0, row=0, drawn=0)

    def place(self) -> dict[str, int]:
        """Epoch, window in it, row in that, and the rows given so far."""
        return {"epoch": self.epoch, "window": self.window, "row": self.row, "drawn": self.drawn}

    def go_to(self, *, epoch: int, window: int, row: int, drawn: int) -> None:
        """Stand before a row: what is held is a function of the place alone."""
        self.epoch, self.window, self.row, self.drawn = epoch, window, row, drawn
        order = np.random.default_rng((*self.seed, epoch)).permutation(len(self.manifest.shards)).tolist()
        chosen = order[window * WINDOW :][:WINDOW]
        held = self.packed
        self.packed = {number: held[number] if number in held else self._load(number) for number in chosen}
        rows = [(number, row) for number in chosen for row in range(len(self.packed[number]))]
        self._order = [rows[i] for i in np.random.default_rng((*self.seed, epoch, window)).permutation(len(rows))]

    def _load(self, number: int) -> Packed:
        shard = self.manifest.shards[number]
        return pack(read_shard(self.folder / shard.name, shard.sha256), self.row_length)

    def next(self) -> Rows:
        """The next row, as a batch of one."""
        windows, passed = -(-len(self.manifest.shards) // WINDOW), 0
        while self.row == len(self._order):
            if passed > windows:
                raise DataError(f"{self.folder} packs into no row: give more examples, or longer rows")
            last = self.window + 1 == windows
            self.go_to(epoch=self.epoch + last, window=0 if last else self.window + 1, row=0, drawn=self.drawn)
            passed += 1
        number, row = self._order[self.row]
        self.row, self.drawn = self.row + 1, self.drawn + 1
        return self.packed[number].rows([row])
