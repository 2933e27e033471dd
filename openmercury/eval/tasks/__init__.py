"""Benchmarks: what is asked, and how an answer is turned into a program that says whether it is right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from openmercury.errors import InputError
from openmercury.eval import humaneval
from openmercury.eval.tasks.base import Chat, Problem, Program, Style, Task


class _HumanEval:
    name, title, prompts, max_tokens = "humaneval", "HumanEval", "humaneval", 512
    styles: tuple[Style, ...] = ("chat",)

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        return [Problem(one.task_id, Chat(humaneval.chat_prompt(one)), asdict(one)) for one in humaneval.load(folder)]

    def program(self, problem: Problem, answer: str) -> Program:
        return Program(humaneval.program(humaneval.Task(**problem.row), answer))


TASKS: dict[str, Task] = {"humaneval": _HumanEval()}
GROUPS: dict[str, tuple[str, ...]] = {"all": tuple(TASKS)}


def find(names: Iterable[str]) -> list[Task]:
    """The tasks of names and names of groups, each once and in the given order; raises InputError."""
    found: dict[str, Task] = {}
    for name in names:
        if name not in TASKS and name not in GROUPS:
            raise InputError(f"there is no task {name!r}: {_advice(name)}")
        found |= {member: TASKS[member] for member in GROUPS.get(name, (name,))}
    return list(found.values())


def _advice(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), (*TASKS, *GROUPS), 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join((*TASKS, *GROUPS))}"
