"""The benchmarks, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from openmercury.errors import InputError
from openmercury.eval.tasks.base import Task
from openmercury.eval.tasks.bigcodebench import BigCodeBenchHard
from openmercury.eval.tasks.cruxeval import CruxEval
from openmercury.eval.tasks.edits import EditEval
from openmercury.eval.tasks.evalplus import EvalPlus
from openmercury.eval.tasks.functions import HumanEval, Infilling
from openmercury.eval.tasks.livecodebench import LiveCodeBench
from openmercury.eval.tasks.mbpp import Mbpp
from openmercury.eval.tasks.multipl_e import TASKS as MULTIPL_E

_ALL: tuple[Task, ...] = (
    HumanEval(),
    EvalPlus("humaneval+", "HumanEval+", "humaneval"),
    EvalPlus("humaneval-base", "HumanEval (as EvalPlus judges it)", "humaneval", base_only=True),
    Mbpp(),
    EvalPlus("mbpp+", "MBPP+", "mbpp"),
    EvalPlus("mbpp-base", "MBPP (the 378 tasks of EvalPlus, original tests)", "mbpp", base_only=True),
    Infilling("humaneval-infilling-single-line", "Infilling, one line", "SingleLineInfilling", True, 128),
    Infilling("humaneval-infilling-random-span", "Infilling, random span", "RandomSpanInfillingLight", False, 512),
    CruxEval("cruxeval-o", "CRUXEval, output", "output"),
    CruxEval("cruxeval-i", "CRUXEval, input", "input"),
    EditEval("editeval", "EditEval"),
    EditEval("apply", "Apply (EditEval's edits to merge)", merging=True),
    BigCodeBenchHard(),
    LiveCodeBench(),
    *MULTIPL_E.values(),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(TASKS),
    "multipl-e": tuple(MULTIPL_E),
    "evalplus": ("humaneval-base", "humaneval+", "mbpp-base", "mbpp+"),
    "humaneval-infilling": ("humaneval-infilling-single-line", "humaneval-infilling-random-span"),
    "cruxeval": ("cruxeval-o", "cruxeval-i"),
}


def find(names: Iterable[str]) -> list[Task]:
    """The tasks of names and names of groups, each once and in the given order; raises InputError."""
    found: dict[str, Task] = {}
    for name in names:
        if name not in TASKS and name not in GROUPS:
            raise InputError(f"there is no task {name!r}: {_advice(name)}")
        found |= {member: TASKS[member] for member in GROUPS.get(name, (name,))}
    return list(found.values())


def _advice(name: str) -> str:
    known = (*TASKS, *GROUPS)
    near = difflib.get_close_matches(name.lower(), known, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
