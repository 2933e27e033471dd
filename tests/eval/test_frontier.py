"""Frontier: areas by hand, what nothing beats, what must not be compared, and the picture."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from openmercury.cli import main
from openmercury.errors import DataError
from openmercury.eval.frontier import AXES, Frontier, Point, aup, frontier, markdown, pareto, read


def settings(mode: str | None, **changed: Any) -> dict[str, Any]:
    ours = {
        "kind": "openmercury",
        "model": "nano",
        "weights": "12ab",
        "device": "cpu",
        "dtype": "float32",
        "mode": mode,
    }
    drawn = {"max_tokens": None, "temperature": 0.0, "top_p": 1.0, "seed": 0}
    return {**ours, "threshold": None, "edit_below": None, "block_size": None, **drawn, **changed}


def row(passed: int, tpf: float | None, speed: float | None, **changed: Any) -> dict[str, Any]:
    share = passed / 100
    score = {"value": share, "low": share - 0.05, "high": share + 0.05}
    counted = {"problems": 164, "answered": 100, "samples": 100, "judged": 100}
    task = {"task": "humaneval", "style": "chat", "scores": {"1": score}, "cost": {"tpf": tpf}}
    return {**task, **counted, "tokens_per_second": speed, **changed}


def write(folder: Path, who: dict[str, Any], *rows: dict[str, Any], hardware: str | None = "a CPU") -> Path:
    folder.mkdir()
    how = {"hardware": hardware, "concurrency": 32}
    (folder / "report.json").write_text(json.dumps({"run": {"settings": who, "how": how}, "tasks": rows}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """AR, two thresholds of diffusion, and a server that tells nothing of its forwards."""
    server = {**settings(None), "kind": "url", "base_url": "http://x/v1", "model": "big"}
    for name in ("weights", "device", "dtype", "mode", "threshold"):
        server.pop(name)
    return [
        write(tmp_path / "ar", settings("ar"), row(50, 1.0, 100.0)),
        write(tmp_path / "d2", settings("diffusion", threshold=0.2, edit_below=1.0), row(50, 3.0, 250.0)),
        write(tmp_path / "d1", settings("diffusion", threshold=0.1, edit_below=1.0), row(48, 4.0, 400.0)),
        write(tmp_path / "url", server, row(60, None, 90.0), hardware=None),
    ]


def whole(runs: list[Path]) -> Frontier:
    return frontier("humaneval", [read(run, "humaneval") for run in runs])


# --- areas -----------------------------------------------------------------------------------------------------------


def test_a_single_point_is_a_rectangle() -> None:
    assert aup([(1.0, 50.0)], 80.0) == (50.0, 1)
    assert aup([(5.0, 53.0)], 53.0) == (265.0, 1)


def test_without_loss_it_is_the_plain_area() -> None:
    area, counted = aup([(4.0, 50.0), (1.0, 50.0), (2.0, 50.0)], 50.0)
    assert (area, counted) == (pytest.approx(200.0), 3)


def test_lost_accuracy_weighs_less_by_hand() -> None:
    weight = math.exp(-3 * (1 - 48 / 50))
    area, _ = aup([(1.0, 50.0), (3.0, 48.0)], 50.0)
    assert area == pytest.approx(50 + (3 - 1) * (50 + 48 * weight) / 2)
    below = aup([(1.0, 50.0), (3.0, 48.0)], 100.0)[0]  # measured by a better system
    assert below == pytest.approx(50 + 50 * math.exp(-1.5) + 48 * math.exp(-3 * 0.52))


def test_points_beyond_five_below_the_first_do_not_count() -> None:
    assert aup([(1.0, 50.0), (9.0, 44.9)], 50.0) == (50.0, 1)
    assert aup([(1.0, 50.0), (9.0, 45.0)], 50.0)[1] == 2
    assert aup([(1.0, 50.0), (4.0, 40.0), (5.0, 50.0)], 50.0) == (pytest.approx(250.0), 2)


def test_nothing_right_is_no_area() -> None:
    assert aup([(1.0, 0.0), (3.0, 0.0)], 0.0) == (0.0, 2)


# --- what nothing beats ----------------------------------------------------------------------------------------------


def test_pareto() -> None:
    def point(name: str, accuracy: float, tpf: float | None) -> Point:
        return Point(name, name, "", accuracy, 0, 1, tpf, None, None, None)

    points = [
        point("slow and good", 0.6, 1.0), point("fast and bad", 0.4, 5.0), point("between", 0.5, 3.0),
        point("beaten", 0.5, 2.0), point("beaten by one", 0.3, 5.0), point("twin", 0.5, 3.0),
        point("untold", 0.9, None),
    ]  # fmt: skip
    front = [one.run for one in pareto(points, AXES["tpf"])]
    assert front == ["slow and good", "between", "twin", "fast and bad"]
    assert pareto(points, AXES["tokens_per_second"]) == []


# --- runs ------------------------------------------------------------------------------------------------------------


def test_runs_become_curves(runs: list[Path]) -> None:
    found = whole(runs)
    assert [(one.system, one.setting) for one in found.points] == [
        ("big url", ""), ("nano ar", ""), ("nano diffusion", "threshold 0.2"), ("nano diffusion", "threshold 0.1"),
    ]  # fmt: skip
    areas = {curve.system: curve for curve in found.curves}
    assert areas["big url"].aup is None
    assert areas["nano ar"].aup == pytest.approx(50.0)
    expected = 150 + (50 * math.exp(-3 * (1 - 50 / 60)) + 48 * math.exp(-3 * (1 - 48 / 60))) / 2
    assert areas["nano diffusion"].aup == pytest.approx(expected)
    assert areas["nano diffusion"].counted == 2
    assert found.best == pytest.approx(60.0)


def test_systems_of_one_name_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path / "16", settings("ar", dtype="bfloat16"), row(49, 1.0, 150.0))
    systems = [one.system for one in whole([*runs, other]).points]
    assert "nano ar, dtype float32" in systems
    assert "nano ar, dtype bfloat16" in systems
    assert "nano diffusion" in systems


def test_a_lone_point_tells_all_its_settings(runs: list[Path]) -> None:
    [point] = whole(runs[1:2]).points
    assert point.setting == "threshold 0.2, edit_below 1.0"


@pytest.mark.parametrize(
    ("who", "counted", "told"),
    [
        ({}, {"answered": 20, "samples": 20, "judged": 20}, "answered is 20 there and 100 here"),
        ({}, {"problems": 974}, "problems is 974 there and 164 here"),
        ({}, {"style": "completion"}, "style is completion there and chat here"),
        ({}, {"samples": 200, "judged": 200}, "samples is 200 there and 100 here"),
        ({"max_tokens": 64}, {}, "max_tokens is 64 there and None here"),
        ({"temperature": 0.8}, {}, "temperature is 0.8 there and 0.0 here"),
    ],
)
def test_other_sets_and_limits_are_refused_by_name(
    who: dict[str, Any], counted: dict[str, Any], told: str, runs: list[Path], tmp_path: Path
) -> None:
    other = write(tmp_path / "other", settings("verified", **who), row(50, 2.0, 9.0, **counted))
    with pytest.raises(DataError, match=f"other cannot be compared with .*ar: {told}"):
        whole([*runs, other])


def test_runs_that_say_too_little_are_refused(tmp_path: Path) -> None:
    half = write(tmp_path / "half", settings("ar"), row(50, 1.0, 9.0, judged=99))
    with pytest.raises(DataError, match="99 of 100 answers to humaneval are judged"):
        read(half, "humaneval")
    with pytest.raises(DataError, match=r"has no mbpp but humaneval \(chat\)"):
        read(half, "mbpp")
    twice = write(tmp_path / "twice", settings("ar"), row(50, 1.0, 9.0), row(50, 1.0, 9.0, style="completion"))
    with pytest.raises(DataError, match="several styles"):
        read(twice, "humaneval")
    assert read(twice, "humaneval", "chat").conditions["style"] == "chat"
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "absent", "humaneval")
    for text in ("{", "[]", '{"run": {}}', '{"run": {"settings": {}, "how": {}}, "tasks": [{"task": "humaneval"}]}'):
        (half / "report.json").write_text(text)
        with pytest.raises(DataError, match="is broken"):
            read(half, "humaneval")


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_the_table(runs: list[Path]) -> None:
    text = markdown(whole(runs))
    assert "| nano diffusion | threshold 0.2 | 50.0% | 45.0%–55.0% | 3.00 | 250.0 | 32 | a CPU | TPF, tok/s |" in text
    assert "| nano ar | – | 50.0% | 45.0%–55.0% | 1.00 | 100.0 | 32 | a CPU |  |" in text
    assert "| big url | – | 60.0% | 55.0%–65.0% | – | 90.0 | 32 | – | tok/s |" in text
    assert "| nano ar | 50.0 | 1 of 1 |" in text
    assert "All with style chat, problems 164, answered 100, samples 100, temperature 0.0, top_p 1.0." in text


def test_the_command_writes_table_json_and_picture(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg, figures = tmp_path / "new" / "f.svg", tmp_path / "new" / "f.json"
    words = [
        "frontier",
        *map(str, [*runs, runs[0]]),
        "--task",
        "humaneval",
        "--picture",
        str(svg),
        "--json",
        str(figures),
    ]
    assert main.main(words) == 0
    assert capsys.readouterr().out == markdown(whole(runs))
    told = json.loads(figures.read_text())
    assert [one["front_tpf"] for one in told["points"]] == [False, False, True, True]
    assert told["aup_of"] == {"alpha": 3.0, "tolerated": 5.0, "best": pytest.approx(60.0)}
    root = ET.parse(svg).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words_drawn = {"".join(one.itertext()).strip() for one in root.iter("{http://www.w3.org/2000/svg}text")}
    wanted = {"nano ar", "nano diffusion", "big url", "pass@1 in %", "tokens per forward", "tokens per second"}
    assert wanted <= words_drawn
    assert "humaneval, a CPU" in words_drawn


def test_wrong_pictures_are_refused_first(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["frontier", str(runs[0]), "--task", "humaneval", "--picture", "f.gif"]) == 1
    assert "should end in .png or .svg" in capsys.readouterr().err
