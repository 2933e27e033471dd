"""Generating and judging, one task at a time; both go on where they were interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from openmercury.errors import DataError
from openmercury.eval import sandbox
from openmercury.eval.store import (
    Appender,
    Kept,
    Place,
    Store,
    Verdict,
    asked_of,
    hash_of,
    read_verdicts,
    sample_row,
    write_whole,
)
from openmercury.eval.systems import Answer, Ask, Sampling, System, seed_of
from openmercury.eval.tasks.base import Problem, Program, Sample, Style, Task

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """A task in one style, its problems (perhaps not all `total` of them), and tokens of an answer at most."""

    task: Task
    style: Style
    problems: Sequence[Problem]
    total: int
    max_tokens: int


def job(task: Task, style: Style, data: Path | None, limit: int | None, max_tokens: int | None) -> Job:
    """Read a task's problems; raises DataError."""
    problems = task.problems(data, style)
    if not problems:
        raise DataError(f"{task.name} has no problems in the data: restore its file")
    return Job(task, style, problems[:limit], len(problems), max_tokens or task.max_tokens)


# --- answers ---------------------------------------------------------------------------------------------------------


def generate(system: System, work: Job, samples: int, sampling: Sampling, store: Store, on_progress: Progress) -> None:
    """Ask for what is not in the store yet, and keep each answer as it comes.

    Raises ServerError where a server stays away, DataError where the store holds answers to other prompts.
    """
    kept = store.samples(work.task, work.style)
    if others := stale(work, kept):
        raise DataError(
            f"the kept answer to {others[0]} of {work.task.name} is to another prompt than today's: give another --out"
        )
    wanted = [(problem, index) for problem in work.problems for index in range(samples)]
    open_ = [one for one in wanted if _missing(kept, (one[0].id, one[1]))]
    done = len(wanted) - len(open_)
    on_progress(done, len(wanted))
    if not open_:
        return
    store.begin()
    asks = [Ask(one.prompt, work.max_tokens, seed_of(sampling.seed, one.id, index)) for one, index in open_]
    system.warm_up(len(asks), sampling)
    session, begin = uuid.uuid4().hex[:8], time.monotonic()
    with Appender(store.samples_path(work.task, work.style)) as file:
        for number, answer in system.answer(asks, sampling):
            problem, index = open_[number]
            sample = _sample(problem, index, answer)
            file.add(sample_row(sample, asked_of(problem, work.max_tokens), session, time.monotonic() - begin))
            done += 1
            on_progress(done, len(wanted))


def _missing(kept: Kept, place: Place) -> bool:
    return place not in kept.samples or kept.samples[place].finish_reason == "error"


def stale(work: Job, kept: Kept) -> list[str]:
    """Problems whose kept answers are to another prompt, or of another length, than those of today."""
    asked = {problem.id: asked_of(problem, work.max_tokens) for problem in work.problems}
    return [problem for (problem, _), before in kept.asked.items() if asked.get(problem, before) != before]


def _sample(problem: Problem, index: int, answer: Answer) -> Sample:
    return Sample(
        problem.id,
        index,
        answer.text,
        answer.finish_reason,
        answer.completion_tokens,
        answer.forwards,
        round(answer.seconds, 4),
        answer.token_ids,
        answer.error,
    )


# --- verdicts --------------------------------------------------------------------------------------------------------


def judge(
    work: Job, kept: Kept, path: Path, on_progress: Progress, *, workers: int | None = None, again: bool = False
) -> dict[Place, Verdict]:
    """Run every answer's program, each program once; verdicts go to `path` as they come.

    Verdicts that are there on the same programs are taken, unless `again`. Raises SandboxError where no sandbox works.
    """
    if again:
        path.unlink(missing_ok=True)
    before = read_verdicts(path)
    known = {verdict.program: verdict for verdict in before if verdict.status != "missing"}
    programs = _programs(work, kept)
    waiting: dict[str, list[Place]] = {}
    for place, program in programs.items():
        waiting.setdefault(hash_of(program), []).append(place)
    by_name = {hash_of(program): program for program in programs.values()}
    verdicts: dict[Place, Verdict] = {}
    with Appender(path) as file:
        for name, verdict in _run(by_name, known, workers):
            for problem, index in waiting[name]:
                verdicts[problem, index] = replace(verdict, problem=problem, index=index)
                if name not in known:
                    file.add(vars(verdicts[problem, index]))
            on_progress(len(verdicts), len(programs))
    verdicts = {place: verdicts[place] for place in programs}
    whole = {(verdict.problem, verdict.index): verdict for verdict in before} | verdicts  # a --limit asks for fewer
    write_whole(path, "".join(json.dumps(vars(verdict)) + "\n" for verdict in whole.values()))
    return verdicts


def _programs(work: Job, kept: Kept) -> dict[Place, Program]:
    """In the order of the problems."""
    problems = {problem.id: (place, problem) for place, problem in enumerate(work.problems)}
    answers = [one for one in kept.samples.values() if one.problem in problems and one.finish_reason != "error"]
    return {
        (one.problem, one.index): work.task.program(problems[one.problem][1], one.answer)
        for one in sorted(answers, key=lambda one: (problems[one.problem][0], one.index))
    }


def _run(
    programs: Mapping[str, Program], known: Mapping[str, Verdict], workers: int | None
) -> Iterator[tuple[str, Verdict]]:
    """(name, verdict) of each program."""
    yield from ((name, known[name]) for name in programs if name in known)
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
    try:
        runs: dict[str, Future[sandbox.Verdict]] = {
            name: pool.submit(run, program) for name, program in programs.items() if name not in known
        }
        for name, future in runs.items():
            verdict = future.result()
            lines = verdict.stderr.strip().splitlines()
            detail = "" if verdict.passed or not lines else lines[-1].strip()
            yield name, Verdict("", 0, verdict.status, detail, round(verdict.seconds, 3), name)
    finally:
        pool.shutdown(cancel_futures=True)


def run(program: Program) -> sandbox.Verdict:
    """One program in the sandbox; "missing" where modules that it needs are not installed."""
    absent = [name for name in program.modules if importlib.util.find_spec(name) is None]
    if absent:
        return sandbox.Verdict("missing", "", f"not installed: {', '.join(absent)}", 0.0)
    return sandbox.run(program)
