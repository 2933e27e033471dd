"""EvalPlus (Liu et al. 2023, arXiv 2305.01210): HumanEval and 378 tasks of MBPP, judged by many more inputs.

Judged as evalplus 0.3.1 does, its sanitizing included: `judge` has its rules, and a test its verdicts to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openmercury.eval.tasks import data, functions, judge
from openmercury.eval.tasks.base import Chat, Continue, Problem, Program, Style
from openmercury.eval.tasks.extract import extract, sanitize

FILES = {"humaneval": "evalplus/HumanEvalPlus.jsonl.xz", "mbpp": "evalplus/MbppPlus.jsonl.xz"}
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
MBPP_STOP = ('\n"""', "\nassert", "\nif __name__", "\ndef main(", "\nprint(")
# Two sets of tests and the reference, which takes 20 s for Mbpp/599; twice that on a busy machine.
SECONDS = 2 * (judge.TOTAL_SECONDS + judge.TOTAL_LATE_SECONDS) + 60.0


@dataclass(frozen=True)
class EvalPlus:
    """`of` names the benchmark that was extended. With `base_only` the inputs are the original ones, about eight."""

    name: str
    title: str
    of: Literal["humaneval", "mbpp"]
    base_only: bool = False
    styles: tuple[Style, ...] = ("chat", "completion")
    max_tokens: int = 512

    @property
    def prompts(self) -> str:
        """HumanEval's own; those of MBPP are others than MBPP's."""
        return "humaneval" if self.of == "humaneval" else "mbpp+"

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """All 164 or 378."""
        rows = data.read(folder, FILES[self.of], FIELDS)
        if self.of == "mbpp":
            return [Problem(row["task_id"], _ask_mbpp(row["prompt"], style), row) for row in rows]
        # One prompt differs a little in evalplus's file; the shared samples are of the original.
        asked = {problem.id: problem.prompt for problem in functions.HumanEval().problems(folder, style)}
        return [Problem(row["task_id"], asked[row["task_id"]], row) for row in rows]

    def program(self, problem: Problem, answer: str) -> Program:
        """The sanitized answer against the reference, on the original inputs, then on those of EvalPlus."""
        row = problem.row
        reference = row["prompt"] + row["canonical_solution"]
        sets = [row["base_input"]] if self.base_only else [row["base_input"], row["plus_input"]]
        inputs = [python_inputs(row["task_id"], inputs) for inputs in sets]
        arguments = (self.solution(problem, answer), reference, row["entry_point"], inputs, row["atol"], self.of)
        call = ", ".join(map(repr, arguments))
        return functions.judged(f"from math import inf, nan\nevalplus({call})", SECONDS)

    def solution(self, problem: Problem, answer: str) -> str:
        """The code that is judged."""
        row, prompt = problem.row, problem.prompt
        if isinstance(prompt, Continue):
            return sanitize(prompt.text + answer, row["entry_point"])
        return sanitize(f"{row['prompt']}\n{extract(answer, row['entry_point'])}", row["entry_point"])


def _ask_mbpp(prompt: str, style: Style) -> Chat | Continue:
    if style == "completion":
        return Continue(prompt.strip() + "\n", MBPP_STOP)
    return Chat(functions.PROMPT.format(prompt=prompt.strip()))


# --- the inputs of MBPP+ ---------------------------------------------------------------------------------------------
# JSON has no tuples, sets and complex numbers: the numbers of the tasks that need them, by what is made of the inputs.


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _rows(value: Sequence[Any]) -> list[Any]:
    return [tuple(part) for part in value]


CONVERSIONS: tuple[tuple[str, Callable[[list[Any]], Sequence[Any]]], ...] = (
    ("2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809", _rows),
    ("63 64 70 94 120 237 272 299 400 409 417 438 473 614 780", lambda given: [_rows(part) for part in given]),
    ("75 413 444 753", lambda given: [_rows(given[0]), given[1]]),
    ("106 750", lambda given: [given[0], tuple(given[1])]),
    ("115", lambda given: [[set(part) if isinstance(part, list) and part else {} for part in given[0]]]),
    ("124", lambda given: (float(given[0]), complex(given[1]))),
    ("250 405 446 617 720 763 808", lambda given: [tuple(given[0]), given[1]]),
    ("252", lambda given: [complex(given[0])]),
    ("259 401 445", lambda given: [tuple(_rows(part)) for part in given]),
    ("278", lambda given: [tuple(tuple(part) if isinstance(part, list) else part for part in given[0])]),
    ("307", lambda given: [tuple(given[0]), given[1], given[2]]),
    ("580 615 791", _tuples),
    ("722", lambda given: [{key: tuple(value) for key, value in given[0].items()}, *given[1:]]),
)
CONVERSION: dict[str, Callable[[list[Any]], Sequence[Any]]] = {
    f"Mbpp/{number}": convert for numbers, convert in CONVERSIONS for number in numbers.split()
}


def python_inputs(task_id: str, inputs: Sequence[Any]) -> list[Sequence[Any]]:
    """The inputs of a task as its function takes them."""
    convert = CONVERSION.get(task_id)
    return list(inputs) if convert is None else [convert(given) for given in inputs]
