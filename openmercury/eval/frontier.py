"""Quality against parallelism and speed, over runs of one benchmark that differ in who answered and how.

A curve is one system: a model in a mode, or whatever else was asked. Its points are its settings. The area under it,
AUP, is that of d3LLM (arXiv 2601.07568): with accuracies yᵢ in per cent at TPF ρ₁ < ρ₂ < …,

    AUP = ρ₁y₁ + Σᵢ ½ (ρᵢ − ρᵢ₋₁) (yᵢ W(yᵢ) + yᵢ₋₁ W(yᵢ₋₁)),    W(y) = min(1, exp(−3 (1 − y / y*))),

y* the best accuracy of all systems compared. Points of less than y₁ − 5 do not count. AR decoding scores its accuracy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from openmercury.errors import DataError

ALPHA = 3.0
TOLERATED = 5.0  # percentage points below the least parallel point of a curve

SETTING = ("threshold", "edit_below", "block_size")  # what moves along a curve
DRAWN = ("max_tokens", "temperature", "top_p")  # what all runs must share, of their settings
COUNTED = ("style", "problems", "answered", "samples")  # and of their task


@dataclass(frozen=True)
class Point:
    """One run. Shares from 0 to 1; `tpf` and `tokens_per_second` are None where the system does not tell.

    `system` names the curve. TPF does not depend on hardware and concurrency, tokens per second do.
    """

    run: str
    system: str
    setting: str
    pass_at_1: float
    low: float
    high: float
    tpf: float | None
    tokens_per_second: float | None
    hardware: str | None
    concurrency: int | None


@dataclass(frozen=True)
class Curve:
    """One system's area; None where a point has no TPF. `counted` of its `points` are within what is tolerated."""

    system: str
    points: int
    counted: int
    aup: float | None


@dataclass(frozen=True)
class Frontier:
    """All points of a task, curve by curve, each by TPF; `best` is y* in per cent."""

    task: str
    conditions: Mapping[str, Any]
    points: Sequence[Point]
    curves: Sequence[Curve]
    best: float

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, with which points nothing beats."""
        fronts = {name: pareto(self.points, of) for name, of in AXES.items()}
        rows = [asdict(one) | {f"front_{name}": one in front for name, front in fronts.items()} for one in self.points]
        aup_of = {"alpha": ALPHA, "tolerated": TOLERATED, "best": self.best}
        curves = [asdict(curve) for curve in self.curves]
        return {"task": self.task, "conditions": self.conditions, "points": rows, "curves": curves, "aup_of": aup_of}


AXES: dict[str, Callable[[Point], float | None]] = {
    "tpf": lambda point: point.tpf,
    "tokens_per_second": lambda point: point.tokens_per_second,
}


# --- curves ----------------------------------------------------------------------------------------------------------


def aup(curve: Sequence[tuple[float, float]], best: float) -> tuple[float, int]:
    """(area, points that count) of (TPF, accuracy in per cent), at least one; `best` is y*, at least their best."""
    ordered = sorted(curve)
    start = ordered[0][1]
    kept = [(tpf, accuracy) for tpf, accuracy in ordered if accuracy >= start - TOLERATED]
    heights = [accuracy * math.exp(-ALPHA * (1 - accuracy / best)) if best else 0.0 for _, accuracy in kept]
    area = ordered[0][0] * start
    for (left, _), (right, _), low, high in zip(kept, kept[1:], heights, heights[1:], strict=False):
        area += (right - left) * (low + high) / 2
    return area, len(kept)


def pareto(points: Sequence[Point], of: Callable[[Point], float | None]) -> list[Point]:
    """Points than which none is at least as good in pass@1 and in `of`, and better in one; by `of`, ascending."""
    told = [(value, one) for one in points if (value := of(one)) is not None]
    front = [
        (value, one)
        for value, one in told
        if not any(
            other >= value and better.pass_at_1 >= one.pass_at_1 and (other, better.pass_at_1) != (value, one.pass_at_1)
            for other, better in told
        )
    ]
    return [one for _, one in sorted(front, key=lambda pair: pair[0])]


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a report says of one task: who answered (`identity`), how (`setting`), what was asked (`conditions`), and
    the figures, still without names that only a comparison can give."""

    folder: str
    identity: Mapping[str, Any]
    setting: Mapping[str, Any]
    conditions: Mapping[str, Any]
    point: Point


def read(folder: Path, task: str, style: str | None = None) -> Run:
    """One run's figures of a task; raises DataError where they are missing, or not all answers were judged."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        settings, how = report["run"]["settings"], report["run"]["how"]
        rows = [row for row in report["tasks"] if row["task"] == task and style in (None, row["style"])]
        names = [f"{row['task']} ({row['style']})" for row in report["tasks"]]
        if len(rows) == 1:
            return _run(str(folder), settings, how, rows[0])
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): give folders that `openmercury eval` made"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is broken ({error!r}): write it again by `openmercury eval --score {folder}`"
        ) from None
    if rows:
        raise DataError(f"{folder} has {task} in several styles: choose one by --style")
    raise DataError(f"{folder} has no {task}{f' ({style})' if style else ''} but {', '.join(names) or 'no task'}")


def _run(folder: str, settings: Mapping[str, Any], how: Mapping[str, Any], row: Mapping[str, Any]) -> Run:
    if not row["samples"] or row["judged"] != row["samples"]:
        raise DataError(
            f"{folder}: {row['judged']} of {row['samples']} answers to {row['task']} are judged: "
            f"judge them all by `openmercury eval --score {folder}`"
        )
    score, speed = row["scores"]["1"], row["tokens_per_second"]
    point = Point(
        run=folder,
        system=f"{settings['model']} {settings.get('mode') or settings['kind']}",
        setting="",
        pass_at_1=float(score["value"]),
        low=float(score["low"]),
        high=float(score["high"]),
        tpf=row["cost"]["tpf"],
        tokens_per_second=speed,
        hardware=how.get("hardware"),
        concurrency=how.get("concurrency"),
    )
    apart = (*SETTING, *DRAWN, "seed")
    identity = {name: value for name, value in settings.items() if name not in apart}
    conditions = {**{name: row[name] for name in COUNTED}, **{name: settings.get(name) for name in DRAWN}}
    setting = {name: settings[name] for name in SETTING if settings.get(name) is not None}
    return Run(folder, identity, setting, conditions, point)


def frontier(task: str, runs: Sequence[Run]) -> Frontier:
    """Lay runs side by side; raises DataError naming the first that was asked something else, or counted otherwise."""
    first = runs[0]
    for run in runs:
        for name, value in run.conditions.items():
            if value != first.conditions[name]:
                raise DataError(
                    f"{run.folder} cannot be compared with {first.folder}: {name} is {value} there and "
                    f"{first.conditions[name]} here; leave one out, or run it again alike"
                )
    points = sorted(_named(runs), key=lambda one: (one.system, one.tpf or 0.0, one.setting))
    best = 100 * max(one.pass_at_1 for one in points)
    systems = dict.fromkeys(one.system for one in points)
    curves = [_curve(system, [one for one in points if one.system == system], best) for system in systems]
    return Frontier(task, first.conditions, points, curves, best)


def _named(runs: Sequence[Run]) -> list[Point]:
    """The points; systems that would share a name are told apart by what differs in their identities. A setting names
    what moves along its curve, or all there is where nothing moves."""
    named = []
    for run in runs:
        alike = [one for one in runs if one.point.system == run.point.system]
        apart = [
            f", {name} {value}" for name, value in run.identity.items() if _moves(name, [x.identity for x in alike])
        ]
        curve = [one.setting for one in alike if one.identity == run.identity]
        moving = [name for name in run.setting if _moves(name, curve)] or list(run.setting)
        setting = ", ".join(f"{name} {run.setting[name]}" for name in moving)
        named.append(replace(run.point, system=run.point.system + "".join(apart), setting=setting))
    return named


def _moves(name: str, among: Sequence[Mapping[str, Any]]) -> bool:
    return any(one.get(name) != among[0].get(name) for one in among)


def _curve(system: str, points: Sequence[Point], best: float) -> Curve:
    told = [(one.tpf, 100 * one.pass_at_1) for one in points if one.tpf is not None]
    if len(told) < len(points):
        return Curve(system, len(points), 0, None)
    area, counted = aup(told, best)
    return Curve(system, len(points), counted, area)


# --- in words --------------------------------------------------------------------------------------------------------

COLUMNS = ("system", "setting", "pass@1", "95 %", "TPF", "tok/s", "at once", "hardware", "best at")


def markdown(whole: Frontier) -> str:
    """Two tables: the points, and the areas under the curves. "best at": no point beats it in pass@1 and in that."""
    fronts = {"TPF": pareto(whole.points, AXES["tpf"]), "tok/s": pareto(whole.points, AXES["tokens_per_second"])}
    lines = _table(
        COLUMNS, [_cells(one, [name for name, front in fronts.items() if one in front]) for one in whole.points]
    )
    areas = [
        [curve.system, "–" if curve.aup is None else f"{curve.aup:.1f}", f"{curve.counted} of {curve.points}"]
        for curve in whole.curves
    ]
    lines += ["", *_table(("system", "AUP", "points that count"), areas)]
    asked = ", ".join(f"{name} {value}" for name, value in whole.conditions.items() if value is not None)
    return "\n".join([f"## {whole.task}", "", *lines, "", f"All with {asked}."]) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _cells(one: Point, best_at: Sequence[str]) -> list[str]:
    return [
        one.system,
        one.setting or "–",
        f"{one.pass_at_1:.1%}",
        f"{one.low:.1%}–{one.high:.1%}",
        "–" if one.tpf is None else f"{one.tpf:.2f}",
        "–" if one.tokens_per_second is None else f"{one.tokens_per_second:,.1f}",
        "–" if one.concurrency is None else str(one.concurrency),
        one.hardware or "–",
        ", ".join(best_at),
    ]
