"""The folder of a run: its settings, every answer, every verdict, the report. It is the cache, too.

    run.json                          who answered, how answers were drawn, on what, which tasks
    samples/<prompts>.<style>.jsonl   one answer a line, written as it comes
    verdicts/<task>.<style>.jsonl     one verdict a line, and the hash of the program it is on
    report.json  report.md            figures; written again from the rest by `openmercury eval --score`

A run with the same settings goes on in the same folder; a line that a crash cut off is dropped and asked for again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from openmercury.errors import DataError
from openmercury.eval.tasks.base import Problem, Program, Sample, Style, Task

RUNS = Path("eval-runs")
Place = tuple[str, int]  # problem, index of the sample


def key_of(settings: Mapping[str, Any]) -> str:
    """8 hex digits of what decides the answers."""
    return digest(settings)[:8]


def digest(value: object) -> str:
    """SHA-256 of plain JSON, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def asked_of(problem: Problem, max_tokens: int) -> str:
    """What was asked, in 8 hex digits: answers to other prompts are not taken for answers to these."""
    return digest([type(problem.prompt).__name__, asdict(problem.prompt), max_tokens])[:8]


def hash_of(program: Program) -> str:
    """Names a program: two with the same name end alike."""
    return digest(asdict(program))[:16]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Verdict:
    """What came of one sample. `status` is the sandbox's, or "missing": no toolchain here, so not run.

    `detail` is the last line of stderr, `program` names what was run.
    """

    problem: str
    index: int
    status: str
    detail: str
    seconds: float
    program: str


@dataclass
class Kept:
    """The answers of one file. `seconds` is the time of generating them, over all sessions; `broken` counts lines
    that are no sample, `asked` tells for each answer what was asked."""

    samples: dict[Place, Sample] = field(default_factory=dict)
    asked: dict[Place, str] = field(default_factory=dict)
    seconds: float = 0.0
    broken: int = 0


class Store:
    """One folder, whose run.json is read; see `create` and `read`. `how` is of this session, once it `begin`s."""

    def __init__(self, folder: Path, run: dict[str, Any], how: Mapping[str, Any] | None = None) -> None:
        self.folder, self.run, self._how = folder, run, how

    @classmethod
    def read(cls, folder: Path) -> Store:
        """A folder that is there; raises DataError."""
        path = folder / "run.json"
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            known = all(isinstance(run[name], dict) for name in ("settings", "how")) and isinstance(run["tasks"], list)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): give the folder of a run") from None
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise DataError(f"{path} is broken: restore it, or start again in another folder")
        return cls(folder, run)

    @classmethod
    def create(cls, folder: Path, settings: Mapping[str, Any], how: Mapping[str, Any]) -> Store:
        """The folder for these settings, made where it is missing; raises DataError where it belongs to others.

        `settings` is what decides the answers, `how` what is worth knowing besides.
        """
        if (folder / "run.json").exists():
            store = cls(folder, cls.read(folder).run, how)
            differing = differences(store.run["settings"], settings)
            if differing:
                raise DataError(f"{folder} holds a run with other settings ({differing}): give another --out")
        else:
            run = {"key": key_of(settings), "settings": dict(settings), "how": dict(how), "tasks": []}
            store = cls(folder, run, how)
        for name in ("samples", "verdicts"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        return store

    def begin(self) -> None:
        """Answers are about to be asked for: tell how. A session that finds all of them there tells nothing new."""
        assert self._how is not None
        self.run["how"] = dict(self._how)
        self.remember([])

    def remember(self, tasks: Sequence[tuple[Task, Style]]) -> None:
        """Add tasks to those of the run, and write run.json."""
        have = [tuple(pair) for pair in self.run["tasks"]]
        new = [(task.name, style) for task, style in tasks if (task.name, style) not in have]
        self.run["tasks"] = [list(pair) for pair in (*have, *new)]
        write_whole(self.folder / "run.json", json.dumps(self.run, indent=2) + "\n")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; raises DataError where one is at work."""
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"another run writes to {self.folder}: wait for it, or give another --out") from None
            yield

    def samples_path(self, task: Task, style: Style) -> Path:
        """Where answers to a task's prompts are."""
        return self.folder / "samples" / f"{_plain(task.prompts)}.{style}.jsonl"

    def verdicts_path(self, task: Task, style: Style) -> Path:
        """Where verdicts are."""
        return self.folder / "verdicts" / f"{_plain(task.name)}.{style}.jsonl"

    # --- samples ---------------------------------------------------------------------------------------------------

    def samples(self, task: Task, style: Style) -> Kept:
        """All answers to a task's prompts; of several at one place, the last."""
        kept, sessions = Kept(), dict[str, float]()
        for row in read_lines(self.samples_path(task, style)):
            try:
                sample, asked = _sample(row), str(row["asked"])
                session, at = str(row["session"]), float(row["at"])
            except (KeyError, TypeError, ValueError):
                kept.broken += 1
                continue
            place = sample.problem, sample.index
            kept.samples[place], kept.asked[place] = sample, asked
            sessions[session] = max(at, sessions.get(session, 0.0))
        kept.seconds = sum(sessions.values())
        return kept


class Appender:
    """Adds lines to a file, each on the disk before the next; a last line that was cut off is taken away first."""

    def __init__(self, path: Path) -> None:
        drop_cut_line(path)
        self._file: IO[str] = path.open("a", encoding="utf-8", newline="\n")

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """One more line."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def sample_row(sample: Sample, asked: str, session: str, at: float) -> dict[str, Any]:
    """The line of a sample: with what was asked, and seconds since its session began."""
    return {**asdict(sample), "asked": asked, "session": session, "at": round(at, 3)}


def read_verdicts(path: Path) -> list[Verdict]:
    """The verdicts of a file; lines that are none are left out, for they can be had again."""
    found = []
    for row in read_lines(path):
        try:
            found.append(Verdict(**{one.name: row[one.name] for one in fields(Verdict)}))
        except (KeyError, TypeError):
            continue
    return found


def read_lines(path: Path) -> Iterator[Any]:
    """The JSON of each line but a last one that was cut off; None where a line is none. No file has no lines."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data[: data.rfind(b"\n") + 1].split(b"\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                yield None


def drop_cut_line(path: Path) -> None:
    """Take away what stands behind the last end of line."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two settings, as in "threshold 0.15, now 0.3"; empty where nothing does."""
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return ", ".join(f"{name} {before.get(name)}, now {now.get(name)}" for name in names)


def _plain(name: str) -> str:
    return name.replace("/", "_")


def _sample(row: Any) -> Sample:
    given = {one.name: row[one.name] for one in fields(Sample)}
    if not isinstance(given["answer"], str) or not isinstance(given["index"], int):
        raise ValueError("answer should be text and index a number")
    ids = given.pop("token_ids")
    return Sample(**given, token_ids=None if ids is None else tuple(ids))
