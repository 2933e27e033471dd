"""The report of a run: figures of each task, and how they were made; as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openmercury.eval.runner import Job, stale
from openmercury.eval.statistics import Cost, Score, cost, scores
from openmercury.eval.store import Kept, Place, Store, Verdict, write_whole
from openmercury.eval.tasks.base import Sample

SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Row:
    """One task. Of `problems` in the data, `answered` have an answer without error; `samples` is their number.

    `scores` (pass@k by k) is over judged samples; empty where nothing was judged. `not_run` counts answers whose
    language or modules are not here, `truncated` those cut off at max_tokens, `errors` those that never came, `empty`
    those that say nothing, `broken` lines that could not be read, `stale` answers to other prompts than today's.
    `seconds` is the time of generating all that stands in the file of samples, `tokens_per_second` the speed of that.
    `problem` is why a task could not be run at all.
    """

    task: str
    title: str
    style: str
    problems: int = 0
    answered: int = 0
    samples: int = 0
    judged: int = 0
    passed: int = 0
    scores: Mapping[int, Score] | None = None
    not_run: int = 0
    truncated: int = 0
    errors: int = 0
    empty: int = 0
    broken: int = 0
    stale: int = 0
    statuses: Mapping[str, int] | None = None
    cost: Cost | None = None
    seconds: float = 0.0
    tokens_per_second: float | None = None
    failures: tuple[str, ...] = ()
    problem: str | None = None


def row_of(work: Job, kept: Kept, verdicts: Mapping[Place, Verdict] | None) -> Row:
    """The figures of one task; `verdicts` None where it was not judged."""
    ids = {problem.id for problem in work.problems}
    samples = [sample for sample in kept.samples.values() if sample.problem in ids]
    answers = [sample for sample in samples if sample.finish_reason != "error"]
    errors = [sample for sample in samples if sample.finish_reason == "error"]
    taken = cost(answers)
    judged = [one for one in (verdicts or {}).values() if one.status != "missing"]
    statuses = [one.status for one in (verdicts or {}).values()]
    return Row(
        task=work.task.name,
        title=work.task.title,
        style=work.style,
        problems=work.total,
        answered=len({sample.problem for sample in answers}),
        samples=len(answers),
        judged=len(judged),
        passed=sum(one.status == "passed" for one in judged),
        scores=_scores(judged) if judged else {},
        not_run=statuses.count("missing"),
        truncated=sum(sample.finish_reason == "length" for sample in answers),
        errors=len(errors),
        empty=sum(not sample.answer.strip() for sample in answers),
        broken=kept.broken,
        stale=len(stale(work, kept)),
        statuses={status: statuses.count(status) for status in sorted(set(statuses))},
        cost=taken,
        seconds=kept.seconds,
        tokens_per_second=_speed(kept),
        failures=tuple(f"{one.problem} ({one.index}): {one.error}" for one in errors),
        problem=None if answers else _nothing(errors, kept),
    )


def _scores(judged: Sequence[Verdict]) -> Mapping[int, Score]:
    outcomes: dict[str, list[bool]] = {}
    for one in judged:
        outcomes.setdefault(one.problem, []).append(one.status == "passed")
    return scores(list(outcomes.values()))


def _speed(kept: Kept) -> float | None:
    tokens = cost([sample for sample in kept.samples.values() if sample.finish_reason != "error"]).tokens
    return tokens / kept.seconds if tokens and kept.seconds else None


def _nothing(errors: Sequence[Sample], kept: Kept) -> str:
    if errors:
        return f"no answer came: {errors[0].error}"
    return f"{kept.broken} broken lines and no sample" if kept.broken else "there are no samples"


def write(store: Store, rows: Sequence[Row]) -> None:
    """Write report.json and report.md: these rows, and those of the run's other tasks as they were written before."""
    path = store.folder / "report.json"
    whole = list({(row.task, row.style): row for row in (*_written(path), *rows)}.values())
    write_whole(path, figures(store.run, whole))
    write_whole(store.folder / "report.md", markdown(store.run, whole))


def figures(run: Mapping[str, Any] | None, rows: Sequence[Row]) -> str:
    """JSON; `run` None where no task could be run."""
    return json.dumps({"run": run, "tasks": [asdict(row) for row in rows]}, indent=2) + "\n"


def _written(path: Path) -> list[Row]:
    """The rows of a report; none where it is missing or not of this version, for `--score` writes it again."""
    try:
        return [_row(told) for told in json.loads(path.read_text(encoding="utf-8"))["tasks"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _row(told: Mapping[str, Any]) -> Row:
    scores = {int(k): Score(**score) for k, score in (told["scores"] or {}).items()}
    spent = None if told["cost"] is None else Cost(**told["cost"])
    return Row(**{**told, "scores": scores, "cost": spent, "failures": tuple(told["failures"])})


# --- in words --------------------------------------------------------------------------------------------------------

COLUMNS = (
    "task", "pass@1", "95 %", "judged", "of", "not run", "truncated", "errors", "empty", "TPF", "tokens", "tok/s",
    "seconds",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """What stands under `COLUMNS`."""
    name = row.task if row.style == "chat" else f"{row.task} ({row.style})"
    if row.problem is not None and not row.samples:
        return [name, "not run", *[""] * (len(COLUMNS) - 2)]
    first = (row.scores or {}).get(1)
    spent = row.cost or Cost(None, None, None, None)
    return [
        name,
        f"{first.value:.1%}" if first else "–",
        f"{first.low:.1%}–{first.high:.1%}" if first else "–",
        str(row.judged),
        str(row.samples),
        str(row.not_run),
        str(row.truncated),
        str(row.errors),
        str(row.empty),
        f"{spent.tpf:.2f}" if spent.tpf is not None else "–",
        f"{spent.tokens:,}" if spent.tokens is not None else "–",
        f"{row.tokens_per_second:.1f}" if row.tokens_per_second is not None else "–",
        f"{row.seconds:.1f}",
    ]


def notes(rows: Iterable[Row]) -> list[str]:
    """What the table must not hide, a sentence each."""
    said = []
    for row in rows:
        if row.problem is not None:
            said.append(f"{row.task}: not run: {row.problem}")
        elif row.answered < row.problems:
            said.append(f"{row.task}: {row.answered} of {row.problems} problems are answered")
        if row.samples and row.empty == row.samples:
            said.append(f"{row.task}: all answers are empty: the system said nothing")
        elif row.empty:
            said.append(f"{row.task}: {row.empty} answers are empty and count as wrong")
        if row.not_run:
            said.append(f"{row.task}: {row.not_run} answers were not run: a language or module is missing here")
        if row.broken:
            said.append(f"{row.task}: {row.broken} lines of the file of samples could not be read")
        if row.stale:
            said.append(f"{row.task}: {row.stale} answers are to other prompts than today's")
        if row.failures and row.problem is None:
            more = f"; and {len(row.failures) - SHOWN_ERRORS} more" if len(row.failures) > SHOWN_ERRORS else ""
            shown = "; ".join(row.failures[:SHOWN_ERRORS])
            said.append(f"{row.task}: {row.errors} answers are missing and left out of pass@1: {shown}{more}")
        others = [f"pass@{k} {score.value:.1%} ({score.low:.1%}–{score.high:.1%})" for k, score in _others(row)]
        if others:
            said.append(f"{row.task}: {', '.join(others)}")
    return said


def _others(row: Row) -> list[tuple[int, Score]]:
    return [(k, score) for k, score in (row.scores or {}).items() if k > 1]


def markdown(run: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The page."""
    settings, how = run["settings"], run["how"]
    lines = [f"# Evaluation of {settings.get('model')}", ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += ["", *[f"- {note}" for note in notes(rows)], ""] if notes(rows) else [""]
    lines += ["## How it was made", ""]
    lines += [f"- {name}: {value}" for name, value in {**settings, **how}.items() if value is not None]
    return "\n".join(lines) + "\n"
