"""Packing places every token once, and says what it leaves out."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmercury.data.packing import Packed, best_fit, pack
from openmercury.data.shards import KINDS, Examples, Kind
from openmercury.errors import DataError

LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=40)


def examples(lengths: list[int], kinds: list[int], prompts: list[int]) -> Examples:
    """Token n of all is n: where one ends up is told by its value."""
    loss = [np.arange(n) >= prompt for n, prompt in zip(lengths, prompts, strict=True)]
    total = sum(lengths)
    parts = (np.arange(total, dtype=np.int32), np.concatenate(loss), np.array(lengths, np.int32))
    return Examples(*parts, np.array(kinds, np.uint8))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_best_fit_places_each_once_within_capacity(lengths: list[int]) -> None:
    rows = best_fit(np.array(lengths), 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)


def slow_best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """By definition: the longest first, each into the fullest row that holds it."""
    rows: list[list[int]] = []
    for piece in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = [capacity - sum(lengths[i] for i in row) for row in rows]
        fits = [number for number, left in enumerate(room) if left >= lengths[piece]]
        if fits:
            rows[min(fits, key=lambda number: room[number])].append(piece)
        else:
            rows.append([piece])
    return rows


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_best_fit_wastes_as_little_as_by_definition(lengths: list[int]) -> None:
    fast, slow = best_fit(np.array(lengths), 20), slow_best_fit(lengths, 20)
    used = [sorted(sum(lengths[i] for i in row) for row in rows) for rows in (fast, slow)]
    assert used[0] == used[1]  # rows with equal room may change places


@given(st.data(), LENGTHS)
@settings(max_examples=100, deadline=None)
def test_every_token_is_placed_once_or_counted(data: st.DataObject, lengths: list[int]) -> None:
    kinds = [data.draw(st.integers(0, KINDS.index("apply"))) for _ in lengths]
    prompts = [data.draw(st.integers(0, n)) for n in lengths]
    given_ = examples(lengths, kinds, prompts)
    packed = pack(given_, 32)
    rows = packed.rows(range(len(packed)))
    there = rows.document >= 0
    placed = rows.ids[there]
    assert len(set(placed.tolist())) == len(placed) == len(given_.ids) - packed.cut
    assert (rows.loss_mask[there] == given_.loss[placed]).all()
    assert not rows.loss_mask[~there].any()
    assert not rows.ids[~there].any()
    lost = set(range(len(given_.ids))) - set(placed.tolist())
    for start, n, kind in zip(given_.start.tolist(), lengths, kinds, strict=True):
        missing = sorted(lost & set(range(start, start + n)))
        if kind == KINDS.index("code") or n <= 32:
            assert not missing
        elif given_.loss[start : start + 32].any():
            assert missing == list(range(start + 32, start + n))  # what a row cannot hold of an answer
        else:
            assert missing == list(range(start, start + n))  # none of the answer would be there
    assert_documents_are_whole(given_, packed)


def assert_documents_are_whole(given_: Examples, packed: Packed) -> None:
    """Within a row a document is one run of successive tokens of one example, and numbers count up from 0."""
    owner = np.repeat(np.arange(len(given_.length)), given_.length)
    rows = packed.rows(range(len(packed)))
    for ids, document in zip(rows.ids, rows.document, strict=True):
        held = document[document >= 0]
        assert (document[: len(held)] == held).all()
        assert held.tolist() == sorted(held.tolist())
        assert sorted(set(held.tolist())) == list(range(held.max() + 1))
        for number in range(held.max() + 1):
            run = ids[document == number]
            assert (np.diff(run) == 1).all()
            assert len(set(owner[run].tolist())) == 1


def test_rows_as_drawn() -> None:
    given_ = examples([3, 12, 2], [KINDS.index("chat")] * 3, [1, 2, 0])
    packed = pack(given_, 10)
    rows = packed.rows(range(len(packed)))
    assert packed.cut == 2
    assert rows.ids[0].tolist() == list(range(3, 13))
    assert rows.loss_mask[0].tolist() == [False] * 2 + [True] * 8
    assert rows.ids[1].tolist() == [0, 1, 2, 15, 16, 0, 0, 0, 0, 0]
    assert rows.document[1].tolist() == [0, 0, 0, 1, 1] + [-1] * 5
    assert rows.loss_mask[1].tolist() == [False, True, True, True, True] + [False] * 5


def test_a_shard_of_8000_examples_packs_in_well_under_a_second() -> None:
    lengths = np.random.default_rng(0).integers(20, 2000, 8000).tolist()
    given_ = examples(lengths, [0] * 8000, [0] * 8000)
    begin = time.process_time()
    packed = pack(given_, 4096)
    assert time.process_time() - begin < 1.0  # 0.04 s measured on one core
    assert len(packed) * 4096 < 1.01 * sum(lengths)


def test_pairs_stand_side_by_side() -> None:
    """Whole or not at all, whatever their lengths; the number of a pair in its row tells which is which."""
    lengths, kinds = [9, 3, 5, 6, 20, 20, 2, 2, 4, 8], [KINDS.index("chosen"), KINDS.index("rejected")] * 5
    given_ = examples(lengths, kinds, [1] * 10)
    packed = pack(given_, 24)
    assert packed.cut == 40
    rows = packed.rows(range(len(packed)))
    seen = []
    for ids, document in zip(rows.ids, rows.document, strict=True):
        texts = [ids[document == number].tolist() for number in range(document.max() + 1)]
        for chosen, rejected in zip(texts[::2], texts[1::2], strict=True):
            seen.append((chosen[0], len(chosen), rejected[0], len(rejected)))
    begin = given_.start.tolist()
    assert sorted(seen) == sorted((begin[i], lengths[i], begin[i + 1], lengths[i + 1]) for i in (0, 2, 6, 8))


@pytest.mark.parametrize("kinds", [("chosen",), ("rejected", "chosen"), ("chosen", "rejected", "chat", "chat")])
def test_broken_pairs_are_refused(kinds: tuple[Kind, ...]) -> None:
    numbers = [KINDS.index(kind) for kind in kinds]
    with pytest.raises(DataError, match="by turns"):
        pack(examples([3] * len(kinds), numbers, [1] * len(kinds)), 24)
