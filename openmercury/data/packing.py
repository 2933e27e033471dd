"""Packing: examples of many lengths into rows of one length, best fit, nothing cut that fits.

Best-fit decreasing: the longest piece first, each into the fullest row that still holds it (arXiv 2404.10830). Code
longer than a row goes on in further rows. Of other examples, which end in an answer, what is beyond the row is left out
and counted, and so is all of one whose answer is not reached.

Preference pairs, a shard of chosen and rejected texts by turns, are packed as one: the two stand side by side in a row,
as its documents 2k and 2k + 1. A pair longer than a row is left out and counted.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from openmercury.data.shards import KINDS, Examples
from openmercury.errors import DataError

CODE, CHOSEN, REJECTED = (KINDS.index(kind) for kind in ("code", "chosen", "rejected"))


class Rows(NamedTuple):
    """Packed rows: ids int32, loss mask bool and document number int32 (−1 on empty tail), each [rows, L]."""

    ids: np.ndarray
    loss_mask: np.ndarray
    document: np.ndarray


@dataclass(frozen=True)
class Packed:
    """Examples and where their rows are: row r holds the pieces first[r] … first[r + 1] − 1.

    A piece is ids[begin : begin + length]. `cut` counts the tokens that are in no row.
    """

    examples: Examples
    row_length: int
    begin: np.ndarray
    length: np.ndarray
    first: np.ndarray
    cut: int

    def __len__(self) -> int:
        return len(self.first) - 1

    def rows(self, numbers: Sequence[int]) -> Rows:
        """These rows."""
        shape = (len(numbers), self.row_length)
        found = Rows(np.zeros(shape, np.int32), np.zeros(shape, bool), np.full(shape, -1, np.int32))
        for row, number in enumerate(numbers):
            at = 0
            for document, piece in enumerate(range(self.first[number], self.first[number + 1])):
                begin, n = int(self.begin[piece]), int(self.length[piece])
                found.ids[row, at : at + n] = self.examples.ids[begin : begin + n]
                found.loss_mask[row, at : at + n] = self.examples.loss[begin : begin + n]
                found.document[row, at : at + n] = document
                at += n
        return found


def pack(examples: Examples, row_length: int) -> Packed:
    """Where each token goes; a function of the lengths and kinds alone but for answers that a row cannot reach."""
    if np.isin(examples.kind, (CHOSEN, REJECTED)).any():
        begin, length = _pairs(examples, row_length)
        plan = [
            [piece for pair in row for piece in (2 * pair, 2 * pair + 1)] for row in best_fit(length.sum(1), row_length)
        ]
        begin, length = begin.flatten(), length.flatten()
    else:
        begin, length = _pieces(examples, row_length)
        plan = best_fit(length, row_length)
    order = np.array([piece for row in plan for piece in row], dtype=np.int64)
    first = np.concatenate(([0], np.cumsum([len(row) for row in plan], dtype=np.int64))).astype(np.int64)
    cut = len(examples.ids) - int(length.sum())
    return Packed(examples, row_length, begin[order], length[order], first, cut)


def _pairs(examples: Examples, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and length of the pairs that fit into a row, [pairs, 2]; raises DataError where the shard holds others."""
    if len(examples.kind) % 2 or (examples.kind.reshape(-1, 2) != (CHOSEN, REJECTED)).any():
        raise DataError(
            "a shard of preference pairs holds chosen and rejected texts by turns, and no others: make it so"
        )
    begin, length = examples.start.reshape(-1, 2), examples.length.astype(np.int64).reshape(-1, 2)
    fits = length.sum(1) <= row_length
    return begin[fits], length[fits]


def _pieces(examples: Examples, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and length of the parts that are packed, none longer than a row."""
    begin, length = examples.start, examples.length.astype(np.int64)
    long = length > row_length
    begins, lengths = [begin[~long]], [length[~long]]
    for at, n, kind in zip(begin[long], length[long], examples.kind[long], strict=True):
        if kind == CODE:
            steps = np.arange(0, n, row_length)
            begins.append(at + steps)
            lengths.append(np.minimum(n - steps, row_length))
        elif examples.loss[at : at + row_length].any():
            begins.append(np.array([at]))
            lengths.append(np.array([row_length]))
    return np.concatenate(begins), np.concatenate(lengths)


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Which pieces share a row; `lengths` must not exceed `capacity`."""
    rows: list[list[int]] = []
    by_room: defaultdict[int, list[int]] = defaultdict(list)  # rows by the room they have left
    rooms: list[int] = []  # its keys that have rows, in order
    for piece in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[piece])
        place = bisect_left(rooms, need)
        if place == len(rooms):
            rows.append([])
            row, room = len(rows) - 1, capacity
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                rooms.pop(place)
        rows[row].append(piece)
        if not by_room[room - need]:
            insort(rooms, room - need)
        by_room[room - need].append(row)
    return rows
