"""MBPP (Austin et al. 2021, arXiv 2108.07732): 500 short Python tasks in a sentence, judged by three assertions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmercury.errors import DataError
from openmercury.eval.tasks import data
from openmercury.eval.tasks.base import Chat, Continue, Problem, Program, Style
from openmercury.eval.tasks.extract import extract
from openmercury.eval.tasks.functions import judged_by_tests

TEST, SHOTS = range(11, 511), (2, 3, 4)
FIELDS = ("task_id", "text", "code", "test_list", "test_setup_code")
TASK = "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
CHAT = TASK + "```python\n{tests}\n```"
SHOT = TASK + "{tests}\n[BEGIN]\n"
STOP = ("[DONE]",)
SECONDS = 20.0  # the paper sets none; its slowest solution, of task 123, took 9 on a busy machine of 2 cores


@dataclass(frozen=True)
class Mbpp:
    """The test split, tasks 11 to 510. The completion style is the paper's, with tasks 2, 3 and 4 as examples."""

    name: str = "mbpp"
    title: str = "MBPP"
    prompts: str = "mbpp"
    styles: tuple[Style, ...] = ("chat", "completion")
    max_tokens: int = 512

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """All 500."""
        rows = {row["task_id"]: row for row in data.read(folder, "mbpp/mbpp.jsonl.xz", FIELDS)}
        asked = [row for number, row in rows.items() if number in TEST]
        if style == "chat":
            return [Problem(f"MBPP/{row['task_id']}", Chat(_filled(CHAT, row)), row) for row in asked]
        if missing := [number for number in SHOTS if number not in rows]:
            raise DataError(f"mbpp.jsonl.xz has no task {missing[0]}, an example of the prompt: restore the file")
        shots = "".join(f"{_filled(SHOT, rows[number])}{solution(rows[number])}\n[DONE]\n\n" for number in SHOTS)
        return [Problem(f"MBPP/{row['task_id']}", Continue(shots + _filled(SHOT, row), STOP), row) for row in asked]

    def program(self, problem: Problem, answer: str) -> Program:
        """The answer's code, then what the tests set up, then the tests."""
        row = problem.row
        code = answer if isinstance(problem.prompt, Continue) else extract(answer, function(row))
        setup = row["test_setup_code"].replace("\r\n", "\n")
        return judged_by_tests("\n".join((code, setup, *row["test_list"])), SECONDS)


def _filled(template: str, row: Mapping[str, Any]) -> str:
    return template.format(text=row["text"], tests="\n".join(row["test_list"]))


def solution(row: Mapping[str, Any]) -> str:
    """The data set's own solution."""
    return str(row["code"]).replace("\r\n", "\n").strip()


def function(row: Mapping[str, Any]) -> str:
    """The name that the first test calls and the solution defines."""
    defined = re.findall(r"def (\w+)", row["code"])
    called = re.findall(r"(\w+)\s*\(", row["test_list"][0])
    return next((name for name in called if name in defined), defined[-1] if defined else "")
