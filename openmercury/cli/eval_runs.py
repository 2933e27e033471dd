"""What `eval` does: choose the tasks and who answers, generate, judge, report; and `compare` of two such runs."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openmercury
from openmercury.cli import generate
from openmercury.cli.errors import FAILED, OK, UsageProblem
from openmercury.cli.options import Settings
from openmercury.errors import ConfigError, DataError

if TYPE_CHECKING:
    from openmercury.engine.params import SamplingParams
    from openmercury.eval.report import Row
    from openmercury.eval.runner import Job
    from openmercury.eval.store import Store
    from openmercury.eval.systems import Sampling, System
    from openmercury.eval.tasks.base import Style, Task
    from openmercury.llm import LLM

KEY_ENV = "OPENAI_API_KEY"
LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True)
class Wanted:
    """The options of `eval`, where it generates."""

    tasks: Sequence[str]
    style: Style | None
    data: Path | None
    limit: int | None
    decoding: Settings
    max_tokens: int | None
    samples: int
    transformers: bool
    base_url: str | None
    api_key_env: str
    concurrency: int | None
    cache_tokens: int | None
    workers: int | None
    out: Path | None
    json_out: Path | None
    generate_only: bool


def run(wanted: Wanted) -> int:
    """Generate, judge and report; returns the exit code."""
    from openmercury.eval import runner
    from openmercury.eval.sandbox import usable_backend
    from openmercury.eval.systems import Sampling
    from openmercury.eval.tasks import find

    work = _jobs(list(_styled(find(wanted.tasks), wanted.style)), wanted.data, wanted.limit, wanted.max_tokens)
    if not wanted.generate_only:
        usable_backend()
    if not any(isinstance(one, runner.Job) for one in work):
        return _finish(None, [one for one in work if not isinstance(one, runner.Job)], wanted.json_out)
    system = _system(wanted)
    drawn = Sampling(wanted.max_tokens, wanted.decoding.temperature, wanted.decoding.top_p, wanted.decoding.seed)
    store = _store(wanted, system, drawn)
    with store.locked():
        store.remember([(one.task, one.style) for one in work if isinstance(one, runner.Job)])
        for one in work:
            if isinstance(one, runner.Job):
                _generate(system, one, wanted.samples, drawn, store)
        rows = _judged(work, store, None if wanted.generate_only else wanted.workers or 0, again=False)
        return _finish(store, rows, wanted.json_out)


def score(folder: Path, names: Sequence[str], data: Path | None, workers: int | None, json_out: Path | None) -> int:
    """Judge what a run has kept once more: its own tasks, or others of the same prompts; returns the exit code."""
    from openmercury.eval.sandbox import usable_backend
    from openmercury.eval.store import Store
    from openmercury.eval.tasks import find

    usable_backend()
    store = Store.read(folder)
    kept = [(find([name])[0], style) for name, style in store.run["tasks"]]
    if names:
        asked = {(task.prompts, style) for task, style in kept}
        kept = [(task, style) for task in find(names) for prompts, style in sorted(asked) if prompts == task.prompts]
        absent = {task.name for task in find(names)} - {task.name for task, _ in kept}
        if absent:
            raise DataError(f"{folder} has no answers for {min(absent)}: generate them, or leave that task out")
    with store.locked():
        work = _jobs(kept, data, None, store.run["settings"].get("max_tokens"))
        store.remember(kept)
        rows = _judged(work, store, workers or 0, again=True)
        return _finish(store, rows, json_out)


# --- what is asked ---------------------------------------------------------------------------------------------------


def _styled(tasks: Sequence[Task], style: Style | None) -> Iterator[tuple[Task, Style]]:
    for task in tasks:
        if style is not None and style not in task.styles:
            raise UsageProblem(f"{task.name} has no --style {style}: it has {', '.join(task.styles)}")
        yield task, style or task.styles[0]


def _jobs(
    tasks: Sequence[tuple[Task, Style]], data: Path | None, limit: int | None, max_tokens: int | None
) -> list[Job | Row]:
    """The tasks with their problems, and a row that says why for those that cannot be had."""
    from openmercury.eval.report import Row
    from openmercury.eval.runner import job

    found: list[Job | Row] = []
    for task, style in tasks:
        try:
            found.append(job(task, style, data, limit, max_tokens))
        except DataError as error:
            found.append(Row(task.name, task.title, style, problem=str(error)))
    return found


# --- who answers -----------------------------------------------------------------------------------------------------


def _system(wanted: Wanted) -> System:
    """Raises CheckpointError, ConfigError."""
    decoding = wanted.decoding
    if wanted.base_url is not None:
        from openmercury.eval.http import Remote

        assert decoding.model is not None
        return Remote(
            wanted.base_url, decoding.model, key=server_key(wanted.api_key_env), concurrency=wanted.concurrency
        )
    from openmercury.eval.systems import Ours, Transformers

    if wanted.transformers:
        from openmercury.llm import default_model

        folder = default_model() if decoding.model is None else Path(decoding.model)
        return Transformers(folder, device=decoding.device, dtype=decoding.dtype, concurrency=wanted.concurrency)
    llm = generate.load(decoding, **({} if wanted.cache_tokens is None else {"cache_tokens": wanted.cache_tokens}))
    return Ours(llm, settled(llm, decoding.sampling()), concurrency=wanted.concurrency)


def server_key(variable: str) -> str | None:
    """The key that a variable of the environment holds; a server may want none. Raises ConfigError."""
    key = os.environ.get(variable)
    if key is None and variable != KEY_ENV:
        raise ConfigError(f"--api-key-env names {variable}, which is not set: set it, or name another")
    return key


def settled(llm: LLM, params: SamplingParams) -> SamplingParams:
    """Diffusion's defaults written out: other versions and machines have others, and they decide the answers."""
    from openmercury.engine.config import DEFAULT_EDIT_BELOW, DEFAULT_THRESHOLD

    facts = llm.config.diffusion
    if params.mode != "diffusion" or facts is None:
        return params
    update = {
        "threshold": DEFAULT_THRESHOLD if params.threshold is None else params.threshold,
        "edit_below": DEFAULT_EDIT_BELOW if params.edit_below is None else params.edit_below,
        "block_size": params.block_size or min(facts.block_size, llm.engine.config.block_limit),
    }
    return params.model_copy(update=update)


def _store(wanted: Wanted, system: System, drawn: Sampling) -> Store:
    """The folder of these settings, named after them unless --out says otherwise."""
    from openmercury.eval.store import RUNS, Store, key_of

    settings = {**system.identity, **vars(drawn)}
    parts = [str(settings["model"]), str(settings.get("mode", settings["kind"])), key_of(settings)]
    name = re.sub(r"[^\w.-]+", "-", "-".join(parts))
    how = {**_how(str(settings.get("device", "server"))), "concurrency": getattr(system, "concurrency", None)}
    return Store.create(wanted.out or RUNS / name, settings, how)


def _how(device: str) -> dict[str, Any]:
    """What a second person should know of this run."""
    from importlib import metadata

    from openmercury.cli.bench import hardware

    versions = {"openmercury": openmercury.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": f"openmercury {shlex.join(sys.argv[1:])}",
        "commit": _commit(),
        "hardware": None if device == "server" else hardware(device),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The commit of a checkout, with "+" behind it where files differ from it; None where this is none."""
    root = Path(openmercury.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    try:
        commit, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "-uno")
    except OSError:  # no git here
        return None
    return f"{commit}{'+' if changed else ''}" if commit else None


# --- generating, judging, telling ------------------------------------------------------------------------------------


def _generate(system: System, one: Job, samples: int, drawn: Sampling, store: Store) -> None:
    from openmercury.cli.show import progress
    from openmercury.eval import runner

    with progress(f"answering {one.task.name}", samples * len(one.problems)) as advance:
        runner.generate(system, one, samples, drawn, store, advance)


def _judged(work: Sequence[Job | Row], store: Store, workers: int | None, *, again: bool) -> list[Row]:
    """A row for each task; `workers` None judges nothing, 0 takes one a core. The report grows with each."""
    from openmercury.cli.show import progress
    from openmercury.eval import report, runner

    rows: list[Row] = []
    for one in work:
        if not isinstance(one, runner.Job):
            rows.append(one)
            continue
        kept, verdicts = store.samples(one.task, one.style), None
        if workers is not None:
            with progress(f"judging {one.task.name}", len(kept.samples)) as advance:
                path = store.verdicts_path(one.task, one.style)
                verdicts = runner.judge(one, kept, path, advance, workers=workers or None, again=again)
        rows.append(report.row_of(one, kept, verdicts))
        report.write(store, rows)
    report.write(store, rows)
    return rows


def _finish(store: Store | None, rows: Sequence[Row], json_out: Path | None) -> int:
    """Print the table and what it must not hide; 1 where a task could not be run at all."""
    from openmercury.eval import report
    from openmercury.eval.store import write_whole

    cells = [report.COLUMNS, *map(report.cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for note in report.notes(rows):
        print(note)
    if store is not None:
        print(f"report: {store.folder / 'report.md'}")
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(json_out, report.figures(None if store is None else store.run, rows))
    return FAILED if any(row.problem is not None for row in rows) else OK
