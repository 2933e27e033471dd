"""Formats and widths follow from what forwards cost; what cannot be had is refused by name."""

from __future__ import annotations

import logging

import pytest

from openmercury.engine import setup as chosen
from openmercury.engine.config import EngineConfig
from openmercury.engine.setup import fastest, setup
from openmercury.engine.widths import KEPT, best_block, best_drafts, draft_speed, forward_ms
from openmercury.errors import ConfigError
from openmercury.model.costs import ROWS
from tests.tiny import config

FLAT = dict.fromkeys(ROWS, 10.0)  # a GPU's: rows are free
STEEP = {rows: 10.0 * rows for rows in ROWS}  # every row costs as much as the first
BENT = {rows: 10.0 + 0.5 * rows for rows in ROWS}


def test_a_forward_lies_between_the_measured_ones() -> None:
    costs = {1: 10.0, 4: 13.0, 8: 21.0}
    assert [forward_ms(costs, rows) for rows in (1, 2, 4, 6, 8)] == [10.0, 11.0, 13.0, 17.0, 21.0]


def test_free_rows_ask_for_wide_drafts_and_dear_ones_for_narrow() -> None:
    assert best_drafts(FLAT).width > 7
    assert best_block(FLAT) == 16
    assert best_drafts(STEEP).width == 1
    assert best_block(STEEP) == 4


@pytest.mark.parametrize("costs", [FLAT, STEEP, BENT])
def test_no_measured_shape_promises_more(costs: dict[int, float]) -> None:
    best = best_drafts(costs)
    assert best.speed == pytest.approx(draft_speed(costs, best.width, best.groups))
    assert all(draft_speed(costs, width, "all") <= best.speed for width in range(1, 5))
    assert all(draft_speed(costs, width, "last") <= best.speed for width in range(1, len(KEPT) + 1))


def test_the_format_is_that_of_the_fastest_drafts() -> None:
    faster = {rows: ms / 2 for rows, ms in BENT.items()}  # but less exact: never chosen unasked
    name, why = fastest({"float32": STEEP, "bfloat16": BENT, "int8": faster})
    assert name == "bfloat16"
    assert why.index("bfloat16") < why.index("float32")
    assert "int8" not in why


def test_settings_follow_the_costs_of_the_chosen_format() -> None:
    found = setup("auto", "cpu", config(), {"float32": STEEP, "bfloat16": FLAT})
    assert found.dtype == "bfloat16"
    assert (found.engine.draft_width, found.engine.draft_groups) == best_drafts(FLAT)[:2]
    assert found.engine.block_limit == 16
    assert setup("float32", "cpu", config(), {"float32": STEEP, "bfloat16": FLAT}).engine.block_limit == 4
    assert setup("float64", "cpu", config(), {"float32": STEEP}).engine == EngineConfig.for_device("cpu")


def test_a_format_that_cannot_be_had_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="int8 is for CPUs and the device is cuda: use bfloat16"):
        setup("int8", "cuda", config())
    with pytest.raises(ConfigError, match="'fp7' is unknown: use auto, float32"):
        setup("fp7", "cpu", config())
    with pytest.raises(ConfigError, match="fp8 is for GPUs and the device is cpu: use int8, bfloat16 or auto"):
        setup("fp8", "cpu", config())
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 6))
    with pytest.raises(ConfigError, match=r"capability 8\.9 or later .*: use bfloat16"):
        setup("fp8", "cuda", config())
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    assert setup("fp8", "cuda", config()).dtype == "fp8"
    assert setup("auto", "cuda", config()).dtype == "bfloat16"
    monkeypatch.setattr(chosen, "packable", lambda kind: False)
    with pytest.raises(ConfigError, match="int8 needs 8-bit products"):
        setup("int8", "cpu", config())


def test_missing_packed_products_are_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(chosen, "packable", lambda kind: False)
    with caplog.at_level(logging.WARNING, "openmercury"):
        setup("float64", "cpu", config(), {})
        assert not caplog.records
        setup("float32", "cpu", config(), {"float32": BENT})
    assert "no packed matrix products for float32" in caplog.text


def test_nothing_is_measured_that_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("openmercury.engine.setup.costs_of", refuse)
    given = EngineConfig(draft_width=2)
    assert setup("float32", "cpu", config(), engine=given).engine is given
    with pytest.raises(AssertionError, match="measured"):
        setup("float32", "cpu", config())
    with pytest.raises(AssertionError, match="measured"):
        setup("auto", "cpu", config(), engine=given)
