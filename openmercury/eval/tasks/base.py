"""The words that all of evaluation shares.

    Task → Problem (with its Prompt) → a system → Sample (the raw answer, kept) → Task.program → sandbox → Verdict

Generating and judging are apart: samples can be judged again, elsewhere, or compared between two systems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Style = Literal["chat", "completion", "fill"]


@dataclass(frozen=True)
class Chat:
    """One message of a user, for a checkpoint's chat template."""

    user: str


@dataclass(frozen=True)
class Continue:
    """Raw text to go on with; the answer ends before the first of `stop`."""

    text: str
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fill:
    """Code around a gap."""

    prefix: str
    suffix: str
    stop: tuple[str, ...] = ()


Prompt = Chat | Continue | Fill


@dataclass(frozen=True)
class Problem:
    """One item of a benchmark. `row` is the data set's own, for whoever judges the answer."""

    id: str
    prompt: Prompt
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """What the sandbox runs: right answers run to their end. Seconds of wall-clock time, bytes of all its processes.

    Without the third-party `modules` that it imports, it is not run rather than failed.
    """

    source: str
    language: str = "python"
    timeout: float = 10.0
    memory_bytes: int = 1 << 30
    modules: tuple[str, ...] = ()


class Task(Protocol):
    """One benchmark.

    Tasks of the same `prompts` ask the same and are judged by different tests (HumanEval, HumanEval+): their samples
    are generated once. The first of `styles` is the usual one.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def prompts(self) -> str: ...
    @property
    def styles(self) -> tuple[Style, ...]: ...
    @property
    def max_tokens(self) -> int: ...

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """All items, from a folder of evaluation data (None: `OPENMERCURY_EVAL_DATA`); raises DataError."""

    def program(self, problem: Problem, answer: str) -> Program:
        """The program that runs to its end if the answer is right."""


@dataclass(frozen=True)
class Sample:
    """One answer as it was given, and its cost: `forwards` is None where a system does not tell.

    `index` numbers the samples of one problem. `finish_reason` is "error" where there is no answer, with its cause in
    `error`: such a sample is not judged, and asked for again when the run is resumed.
    """

    problem: str
    index: int
    answer: str
    finish_reason: str
    completion_tokens: int
    forwards: int | None
    seconds: float
    token_ids: tuple[int, ...] | None = None
    error: str | None = None
