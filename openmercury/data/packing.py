"""Packing: examples of many lengths into rows of one length, best fit, nothing cut that fits.

Best-fit decreasing: the longest example first, each into the fullest row that still holds it. On our data fewer than
1 % of the positions stay empty (arXiv 2404.10830).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from openmercury.data.shards import Examples


class Rows(NamedTuple):
    """Packed rows: ids int32, loss mask bool and document number int32 (−1 on empty tail), each [rows, L]."""

    ids: np.ndarray
    loss_mask: np.ndarray
    document: np.ndarray


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Which examples share a row; `lengths` must not exceed `capacity`."""
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the room they have left
    rows: list[list[int]] = []
    for index in np.argsort(-lengths, kind="stable"):
        need = int(lengths[index])
        room = next((r for r in range(need, capacity + 1) if by_room[r]), None)
        if room is None:
            rows.append([])
            row, room = len(rows) - 1, capacity
        else:
            row = by_room[room].pop()
        rows[row].append(int(index))
        by_room[room - need].append(row)
    return rows


def pack(examples: Examples, row_length: int) -> Rows:
    """Pack; an example longer than a row is cut at the row's end."""
    lengths = np.minimum(examples.length, row_length)
    plan = best_fit(lengths, row_length)
    ids = np.zeros((len(plan), row_length), dtype=np.int32)
    loss_mask = np.zeros((len(plan), row_length), dtype=bool)
    document = np.full((len(plan), row_length), -1, dtype=np.int32)
    start = examples.start
    for row, members in enumerate(plan):
        at = 0
        for number, index in enumerate(members):
            n = int(lengths[index])
            ids[row, at : at + n] = examples.ids[start[index] : start[index] + n]
            loss_mask[row, at + int(examples.prompt[index]) : at + n] = True
            document[row, at : at + n] = number
            at += n
    return Rows(ids, loss_mask, document)
