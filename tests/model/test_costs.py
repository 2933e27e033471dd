"""What a machine's forwards cost is measured, kept, and read again only when it is usable."""

from __future__ import annotations

from pathlib import Path

import pytest

from openmercury.model import costs
from tests.tiny import config

FOUND = {"float32": {1: 2.0, 8: 3.0}, "int8": {1: 1.0, 8: 2.5}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs, "SECONDS", 0.0)
    monkeypatch.setattr(costs, "BYTES", 1)
    return tmp_path


def test_measuring_covers_every_format_and_row_and_never_falls() -> None:
    found = costs.measure(config(), seconds=0.0)
    assert list(found) == costs.candidates("cpu")
    for each in found.values():
        assert tuple(each) == costs.ROWS
        assert list(each.values()) == sorted(each.values())
        assert min(each.values()) > 0


def test_what_exceeds_the_cost_of_more_rows_is_not_believed() -> None:
    assert costs.rising({1: 5.0, 2: 3.0, 4: 9.0, 8: 4.0}) == {1: 3.0, 2: 3.0, 4: 4.0, 8: 4.0}


def test_what_was_found_is_known_next_time_for_this_shape_only(home: Path) -> None:
    assert costs.recall(config()) is None
    costs.remember(config(), FOUND)
    costs.remember(config("llama", adapter=False, tied=False).model_copy(update={"d_ffn": 64}), {"float32": {1: 9.0}})
    assert costs.recall(config()) == FOUND
    assert costs.costs_of(config()) == FOUND
    assert costs.recall(config().model_copy(update={"n_layers": 3})) is None
    assert costs.costs_of(config(), afresh=True) != FOUND
    assert costs.recall(config()) != FOUND
    assert [path.name for path in costs.cache_file().parent.iterdir()] == [costs.CACHE]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"KEY": {}}', '{"KEY": {"float32": {"x": 1}}}', '{"KEY": {"fp7": {"1": 1}}}', "\xff"],
)
def test_a_broken_file_is_measured_over(home: Path, text: str) -> None:
    path = costs.cache_file()
    path.parent.mkdir()
    path.write_bytes(text.replace("KEY", costs._key(config())).encode("latin-1"))
    assert costs.recall(config()) is None
    found = costs.costs_of(config())
    assert costs.recall(config()) == found


def test_a_folder_that_cannot_be_written_means_measuring_again(home: Path) -> None:
    (home / "openmercury").write_text("a file where the folder should be")
    assert set(costs.costs_of(config())) == set(costs.candidates("cpu"))
    assert costs.recall(config()) is None
