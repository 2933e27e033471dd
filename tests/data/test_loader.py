"""Loading: an epoch visits each row once, mixes keep their proportions, and any stop resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openmercury.data.config import Source
from openmercury.data.loader import WINDOW, Batch, Loader
from openmercury.data.shards import Example, write_manifest, write_shard
from openmercury.errors import DataError

CPU = torch.device("cpu")


def make(folder: Path, first: int, shards: int, each: int) -> Source:
    """Row n of the folder holds the token first + n, four times."""
    for number in range(shards):
        rows = [Example([first + number * each + i] * 4, 0) for i in range(each)]
        write_shard(folder / f"{number:03d}.safetensors", rows)
    write_manifest(folder)
    return Source(path=folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    folder = tmp_path_factory.mktemp("sources")
    big, small = make(folder / "big", 0, 2 * WINDOW + 1, 3), make(folder / "small", 1000, 1, 5)
    return [big.model_copy(update={"weight": 3.0}), small]


def rows(loader: Loader, batches: int) -> list[int]:
    return [int(row) for _ in range(batches) for row in loader.next(CPU).tokens_BL[:, 0]]


def test_an_epoch_visits_each_row_once_and_each_epoch_differs(sources: list[Source]) -> None:
    total = 3 * (2 * WINDOW + 1)
    drawn = rows(Loader(sources[:1], 4, 2, seed=1), total)
    first, second = drawn[:total], drawn[total:]
    assert sorted(first) == sorted(second) == list(range(total))
    assert first != second
    assert first != rows(Loader(sources[:1], 4, 2, seed=2), total)[:total]


def test_few_shards_are_held(sources: list[Source]) -> None:
    loader = Loader(sources, 4, 1, seed=1)
    for _ in range(60):
        loader.next(CPU)
        assert len(loader.streams[0].packed) <= WINDOW


@given(stop=st.integers(0, 60), batch=st.integers(1, 5), then=st.integers(1, 5), mixed=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_resumes_at_any_point(sources: list[Source], stop: int, batch: int, then: int, mixed: bool) -> None:
    """With the same batch or another: rows go on where they stopped."""
    used = sources if mixed else sources[:1]
    whole = Loader(used, 4, batch, seed=5)
    rows(whole, stop)
    again = Loader(used, 4, then, seed=5, state=json.loads(json.dumps(whole.state())))
    expected = rows(whole, 20)
    assert rows(again, 20)[: 20 * min(batch, then)] == expected[: 20 * min(batch, then)]


@given(weights=st.lists(st.integers(1, 9), min_size=2, max_size=2), batches=st.integers(1, 40))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mix_keeps_its_proportions(sources: list[Source], weights: list[int], batches: int) -> None:
    mix = [source.model_copy(update={"weight": float(w)}) for source, w in zip(sources, weights, strict=True)]
    drawn = rows(Loader(mix, 4, 3, seed=0), batches)
    of_big = sum(row < 1000 for row in drawn)
    assert abs(of_big - len(drawn) * weights[0] / sum(weights)) <= 1


def test_fields_of_a_batch(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", [Example([7, 8, 9], [False, True, False], "chat"), Example([5], 0)])
    write_manifest(tmp_path)
    batch = Loader([Source(path=tmp_path)], 6, 1, seed=0).next(CPU)
    assert isinstance(batch, Batch)
    assert batch.tokens_BL.tolist() == [[7, 8, 9, 5, 0, 0]]
    assert batch.loss_mask_BL.tolist() == [[False, True, False, True, False, False]]
    assert batch.document_BL.tolist() == [[0, 0, 0, 1, -1, -1]]
    assert (batch.tokens_BL.dtype, batch.loss_mask_BL.dtype, batch.document_BL.dtype) == (
        torch.int64, torch.bool, torch.int64,
    )  # fmt: skip


def test_what_is_cut_is_told(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", [Example([7] * 9, 2, "chat"), Example([5] * 9, 0, "code")])
    write_manifest(tmp_path)
    assert Loader([Source(path=tmp_path)], 6, 1, seed=0).cut == 3 / 18


def test_a_state_of_other_data_is_refused(sources: list[Source], tmp_path: Path) -> None:
    state = Loader(sources, 4, 2, seed=1).state()
    for changed in (
        {"sources": sources[:1], "row_length": 4, "seed": 1},
        {"sources": sources, "row_length": 8, "seed": 1},
        {"sources": sources, "row_length": 4, "seed": 2},
    ):
        with pytest.raises(DataError, match="begun with other data"):
            Loader(**changed, batch=2, state=state)  # type: ignore[arg-type]


def test_data_that_packs_into_no_row(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", [Example([7] * 9, 8, "chat")])
    write_manifest(tmp_path)
    with pytest.raises(DataError, match="packs into no row"):
        Loader([Source(path=tmp_path)], 6, 1, seed=0).next(CPU)
