"""LiveCodeBench (Jain et al. 2024, arXiv 2403.07974): contest problems, from files in its own format.

The folder of evaluation data may hold any of its releases as livecodebench/*.jsonl or *.jsonl.xz. Answers read stdin
and print, or are a method of class `Solution` where the contest wants one.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmercury.data.decontaminate import ENVIRONMENT, eval_folder, read_rows
from openmercury.errors import DataError
from openmercury.eval.tasks.base import Chat, Problem, Program, Style
from openmercury.eval.tasks.extract import blocks
from openmercury.eval.tasks.functions import judged

ASK = "Solve the following problem in Python. {how} Give the whole program in one markdown code block.\n\n{question}"
READS = "The program reads its input from stdin and prints its output."
COMPLETES = "Complete this code, and keep its names:\n```python\n{starter}\n```\n"
FIELDS = ("question_id", "question_content", "starter_code", "public_test_cases", "private_test_cases", "metadata")
SECONDS = 6.0  # a test, as in the benchmark's own harness


@dataclass(frozen=True)
class LiveCodeBench:
    """All problems of the files that are there."""

    name: str = "livecodebench"
    title: str = "LiveCodeBench"
    prompts: str = "livecodebench"
    styles: tuple[Style, ...] = ("chat",)
    max_tokens: int = 2048

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        """Every problem once, in the order of files and rows; raises DataError where there are none."""
        root = eval_folder(folder) / "livecodebench"
        paths = sorted((*root.glob("*.jsonl"), *root.glob("*.jsonl.xz")))
        if not paths:
            raise DataError(
                f"no *.jsonl or *.jsonl.xz in {root}: put a release of LiveCodeBench there, "
                f"or point {ENVIRONMENT} to a folder that has it"
            )
        found: dict[str, Problem] = {}
        for path in paths:
            for row in read_rows(path):
                if missing := [field for field in FIELDS if field not in row]:
                    raise DataError(f"{path} has a row without {missing[0]!r}: it is no release of LiveCodeBench")
                found.setdefault(row["question_id"], Problem(row["question_id"], Chat(_ask(row)), row))
        return list(found.values())

    def program(self, problem: Problem, answer: str) -> Program:
        """The answer, run on the public and the hidden tests."""
        row = problem.row
        found = blocks(answer)
        code = found[-1] if found else answer
        cases = [*json.loads(row["public_test_cases"]), *hidden(row["private_test_cases"])]
        if name := json.loads(row["metadata"] or "{}").get("func_name"):
            tests: list[Any] = [
                ([json.loads(line) for line in case["input"].split("\n")], json.loads(case["output"])) for case in cases
            ]
            call = f"functional({code!r}, {name!r}, {tests!r}, {SECONDS})"
        else:
            tests = [(case["input"], case["output"]) for case in cases]
            call = f"stdin_stdout({code!r}, {tests!r}, {SECONDS})"
        return judged(call, SECONDS * (len(cases) + 1))


def _ask(row: Mapping[str, Any]) -> str:
    starter = row["starter_code"]
    how = COMPLETES.format(starter=starter.strip()) if starter else READS
    return ASK.format(how=how, question=row["question_content"].strip())


def hidden(text: str) -> list[dict[str, str]]:
    """The hidden tests: JSON as it is, or pickled, compressed and in base 64, as the releases have it."""
    try:
        cases = json.loads(text)
    except ValueError:
        try:
            cases = json.loads(_OnlyText(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load())
        except (ValueError, TypeError, zlib.error, pickle.UnpicklingError, EOFError) as error:
            raise DataError(f"hidden tests of LiveCodeBench cannot be read ({error}): restore the file") from None
    return list(cases)


class _OnlyText(pickle.Unpickler):
    """A pickle may name code to run: this one names nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
