"""HumanEval: 164 Python functions to complete from signature and docstring, judged by their unit tests.

The data is that of Chen et al. 2021 (arXiv 2107.03374), prompts go through the checkpoint's chat template.
"""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path

from openmercury.data.decontaminate import eval_folder, read_rows
from openmercury.errors import DataError

TASKS = 164
PROMPT = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```python\n{prompt}\n```"
)
# A block without its closing fence, as in a truncated answer, reaches to the end.
BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Task:
    """One problem: `prompt` ends where the function's body begins, `test` defines `check(candidate)`."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str


def load(folder: Path | None = None) -> list[Task]:
    """The tasks, from `humaneval/HumanEval.jsonl.xz` in a folder (None: `OPENMERCURY_EVAL_DATA`); raises DataError."""
    path = eval_folder(folder) / "humaneval" / "HumanEval.jsonl.xz"
    try:
        tasks = [Task(**{field.name: row[field.name] for field in fields(Task)}) for row in read_rows(path)]
    except KeyError as error:
        raise DataError(f"{path.name} has a row without {error}: restore the file") from None
    if len({task.task_id for task in tasks}) != TASKS:
        raise DataError(f"{path.name} holds {len(tasks)} tasks where HumanEval has {TASKS}: restore the file")
    return tasks


# --- from task to answer ---------------------------------------------------------------------------------------------


def chat_prompt(task: Task) -> str:
    """What the user's one message says."""
    return PROMPT.format(prompt=task.prompt.strip())


# --- from answer to verdict ------------------------------------------------------------------------------------------


def extract(answer: str, entry_point: str) -> str:
    """The code of an answer: the first block that defines the function, else the last block, else the whole text."""
    blocks = [textwrap.dedent(block) for block in BLOCK.findall(answer.replace("\r\n", "\n"))]
    if not blocks:
        return answer
    definition = re.compile(rf"^\s*(async\s+)?def\s+{re.escape(entry_point)}\s*\(", re.MULTILINE)
    return next((block for block in blocks if definition.search(block)), blocks[-1])


def program(task: Task, answer: str) -> str:
    """What is run: the prompt's imports and helpers where the answer lacks them, the answer's code, the tests."""
    code = extract(answer, task.entry_point)
    return f"{prelude(task, code)}{code}\n{task.test}\ncheck({task.entry_point})\n"


def prelude(task: Task, code: str) -> str:
    """Statements of the prompt beside the function itself that bind a name which `code` does not."""
    lines = task.prompt.splitlines()
    bound = {name for node in _parse(code) for name in _names(node)}
    kept = ""
    for node in _parse(task.prompt):
        names = _names(node)
        if task.entry_point not in names and not names <= bound:
            kept += "\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n"
    return kept


def _parse(code: str) -> list[ast.stmt]:
    """Top-level statements; none where the code is broken."""
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the parser's ways to refuse what a model wrote
        return []


def _names(node: ast.stmt) -> set[str]:
    """Names that a statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
