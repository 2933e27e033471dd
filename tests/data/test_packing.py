"""Packing loses nothing that fits, and the loader resumes where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openmercury.data.loader import Loader
from openmercury.data.packing import best_fit, pack
from openmercury.data.shards import Example, read_shards, write_shard
from openmercury.errors import DataError


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_best_fit_places_each_once_within_capacity(lengths: list[int]) -> None:
    rows = best_fit(np.array(lengths), 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)


def test_pack_keeps_tokens_documents_and_loss(tmp_path: Path) -> None:
    examples = [Example([1, 2, 3], 1), Example([4] * 12, 2), Example([5, 6], 0)]
    write_shard(tmp_path / "a.safetensors", examples)
    rows = pack(read_shards(tmp_path), 10)
    assert rows.ids.shape == (2, 10)
    assert (rows.ids[0] == 4).all()
    assert rows.loss_mask[0].tolist() == [False] * 2 + [True] * 8
    assert rows.ids[1].tolist() == [1, 2, 3, 5, 6, 0, 0, 0, 0, 0]
    assert rows.document[1].tolist() == [0, 0, 0, 1, 1] + [-1] * 5
    assert rows.loss_mask[1].tolist() == [False, True, True, True, True] + [False] * 5


def test_loader_resumes_and_covers_an_epoch(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", [Example([i] * 4, 0) for i in range(10)])
    rows = pack(read_shards(tmp_path), 4)
    cpu = torch.device("cpu")
    loader = Loader(rows, 3, seed=1)
    batches = [loader.next(cpu).tokens_BL[:, 0].tolist() for _ in range(10)]
    assert sorted([row for batch in batches for row in batch][:10]) == list(range(10))
    again = Loader(rows, 3, seed=1, drawn=12)
    assert [again.next(cpu).tokens_BL[:, 0].tolist() for _ in range(6)] == batches[4:]


def test_missing_and_broken_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards"):
        read_shards(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="whole shard"):
        read_shards(tmp_path)
