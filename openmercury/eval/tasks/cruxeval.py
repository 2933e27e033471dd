"""CRUXEval (Gu et al. 2024, arXiv 2401.03065): 800 short functions; what do they return, and on what input?

The format is the paper's (a function in [PYTHON] tags, the completed assertion in [ANSWER] tags, two examples), the
words are our own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openmercury.eval.tasks import data
from openmercury.eval.tasks.base import Chat, Continue, Problem, Program, Style
from openmercury.eval.tasks.functions import SECONDS, judged_by_tests

Asked = Literal["output", "input"]

ASK = {
    "output": (
        "Below are a Python function and an assertion about one call of it. Complete the assertion with the literal "
        "that the call returns: no expression to work out, no function call, even if the function looks wrong."
    ),
    "input": (
        "Below are a Python function and an assertion about a value that it returns. Complete the assertion with "
        "arguments for which it holds; where there are several, any will do."
    ),
}
FORM = " Give the whole assertion between [ANSWER] and [/ANSWER], and nothing else, as in the examples."
EXAMPLES = (
    ("def f(word):\n    return word[::-1] + word", "'ab'", "'baab'"),
    ("def f(numbers, least):\n    return sum(n for n in numbers if n >= least)", "[4, 1, 7], 3", "11"),
)
STOP = ("[/ANSWER]",)
ANSWER = re.compile(r"\[ANSWER\](.*?)(?:\[/ANSWER\]|\Z)", re.DOTALL)


@dataclass(frozen=True)
class CruxEval:
    """`asked` is what is left out of the assertion."""

    name: str
    title: str
    asked: Asked
    styles: tuple[Style, ...] = ("chat", "completion")
    max_tokens: int = 128

    @property
    def prompts(self) -> str:
        """Nobody else asks these."""
        return self.name

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """All 800."""
        rows = data.read(folder, "cruxeval/cruxeval.jsonl.xz", ("id", "code", "input", "output"))
        shots = ASK[self.asked] + FORM + "\n\n"
        for code, given, result in EXAMPLES:
            solved = f"assert f({given}) == {result}"
            shots += f"{self._question(code, given, result)}[ANSWER]\n{solved}\n[/ANSWER]\n\n"
        texts = [shots + self._question(row["code"], row["input"], row["output"]) for row in rows]
        prompts = [Continue(text + "[ANSWER]\n", STOP) if style == "completion" else Chat(text) for text in texts]
        return [Problem(row["id"], prompt, row) for row, prompt in zip(rows, prompts, strict=True)]

    def _question(self, code: str, given: str, result: str) -> str:
        assertion = f"f({given}) == ??" if self.asked == "output" else f"f(??) == {result}"
        return f"[PYTHON]\n{code}\nassert {assertion}\n[/PYTHON]\n"

    def program(self, problem: Problem, answer: str) -> Program:
        """The function, and the assertion with the answer in it."""
        row = problem.row
        left, right = sides(stated(answer))
        if self.asked == "input":
            check = asserted(row, left if left.startswith("f(") else f"f({left})")
        elif re.search(r"\bf\(", right):  # would always be right
            check = "raise AssertionError('a call, where a literal is asked for')"
        else:
            check = asserted(row, right)
        return judged_by_tests(f"{row['code']}\n{check}", SECONDS)


def asserted(row: Mapping[str, Any], value: str) -> str:
    """An assertion that the output is `value`, whatever that holds."""
    return f"assert ({row['output']}) == (\n{value.strip()}\n)"


def stated(answer: str) -> str:
    """What an answer states: the first assertion in its tags, or in all of it where it has none; else all."""
    tagged = ANSWER.findall(answer)
    text = re.sub(r"^\s*```\w*\s*$", "", tagged[0] if tagged else answer, flags=re.MULTILINE)
    begin = re.search(r"^\s*assert ", text, re.MULTILINE)
    return text[begin.start() if begin else 0 :].strip()


def sides(statement: str) -> tuple[str, str]:
    """Both sides of an assertion, which may end before other text; what is none is both sides itself."""
    text = statement.removeprefix("assert ").strip()
    for part in (text, text.partition("\n")[0]):
        try:
            tree = ast.parse(part, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the parser's ways to refuse what a model wrote
            continue
        if isinstance(tree, ast.Compare) and isinstance(tree.ops[0], ast.Eq) and len(tree.ops) == 1:
            return ast.get_source_segment(part, tree.left) or "", ast.get_source_segment(
                part, tree.comparators[0]
            ) or ""
        return part, part
    return text, text
