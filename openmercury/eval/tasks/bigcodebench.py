"""BigCodeBench-Hard (Zhuo et al. 2024, arXiv 2406.15877): 148 tasks that call on many libraries, judged by unittest."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmercury.eval.tasks import data
from openmercury.eval.tasks.base import Chat, Continue, Problem, Program, Prompt, Style
from openmercury.eval.tasks.extract import extract, sanitize
from openmercury.eval.tasks.functions import MEMORY_BYTES

FIELDS = ("task_id", "complete_prompt", "instruct_prompt", "code_prompt", "canonical_solution", "test", "libs")
ENTRY_POINT = "task_func"
STOP = ("\nif __name__", "\ndef main(", "\nprint(", "\nassert ", "\nclass ")
RUN = """
import unittest
assert unittest.TextTestRunner(failfast=True).run(
    unittest.defaultTestLoader.loadTestsFromTestCase(TestCases)
).wasSuccessful()
"""
SECONDS = 240.0  # of the benchmark's own harness


@dataclass(frozen=True)
class BigCodeBenchHard:
    """Instructions in words (chat), or a signature with a docstring to continue (completion)."""

    name: str = "bigcodebench-hard"
    title: str = "BigCodeBench-Hard"
    prompts: str = "bigcodebench-hard"
    styles: tuple[Style, ...] = ("chat", "completion")
    max_tokens: int = 1024

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """All 148."""
        rows = data.read(folder, "bigcodebench_hard/bigcodebench_hard.json.xz", FIELDS)
        return [Problem(row["task_id"], _ask(row, style), row) for row in rows]

    def program(self, problem: Problem, answer: str) -> Program:
        """The imports of the task, the sanitized answer, its test case."""
        row, prompt = problem.row, problem.prompt
        text = prompt.text + answer if isinstance(prompt, Continue) else extract(answer, ENTRY_POINT)
        code = f"{row['code_prompt']}\n    pass\n{sanitize(text, ENTRY_POINT)}\n{row['test']}\n{RUN}"
        return Program(code, timeout=SECONDS, memory_bytes=MEMORY_BYTES, modules=libraries(row))


def _ask(row: Mapping[str, Any], style: Style) -> Prompt:
    return Continue(row["complete_prompt"], STOP) if style == "completion" else Chat(row["instruct_prompt"])


def libraries(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The third-party modules of a task: those that it lists, and those that its tests import."""
    names = {name.partition(".")[0] for name in ast.literal_eval(row["libs"])}
    for node in ast.walk(ast.parse(row["test"])):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return tuple(sorted(names - sys.stdlib_module_names))
