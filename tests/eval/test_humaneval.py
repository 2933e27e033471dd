"""The right code is taken out of an answer and run with what it needs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from openmercury.errors import DataError
from openmercury.eval import humaneval
from openmercury.eval.humaneval import Task, extract, prelude, program
from tests.eval.made import rows, tasks, write_data

FUNCTION = "def f(x):\n    return x\n"
TASK = tasks(1)[0]


# --- data ------------------------------------------------------------------------------------------------------------


def test_load_reads_the_folder_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMERCURY_EVAL_DATA", str(write_data(tmp_path)))
    assert humaneval.load() == tasks()


def test_load_refuses_missing_and_broken_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENMERCURY_EVAL_DATA", raising=False)
    with pytest.raises(DataError, match="OPENMERCURY_EVAL_DATA"):
        humaneval.load()
    with pytest.raises(DataError, match="holds 163 tasks"):
        humaneval.load(write_data(tmp_path / "short", rows(163)))
    with pytest.raises(DataError, match="without 'test'"):
        humaneval.load(write_data(tmp_path / "other", [{"task_id": "1", "prompt": "", "entry_point": ""}]))
    folder = write_data(tmp_path / "cut")
    path = folder / "humaneval" / "HumanEval.jsonl.xz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot read"):
        humaneval.load(folder)


# --- extracting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{FUNCTION}```",
        f"Sure:\n\n```py\n{FUNCTION}```\nThis returns `x`.",
        f"```\n{FUNCTION}```",
        f"```python\n{FUNCTION}",
        f"```python\r\n{FUNCTION}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
        f"```python\nimport g\n```\nand\n```python\n{FUNCTION}```\nUse it:\n```python\nprint(f(1))\n```",
        f"```bash\npip install x\n```\n```python\n{FUNCTION}```\n```python\ndef f(x):\n    return 2\n```",
        "1. Like this:\n\n   ```python\n   def f(x):\n       return x\n   ```\n",
        FUNCTION,
    ],
)
def test_extract_finds_the_function(answer: str) -> None:
    assert extract(answer, "f") == FUNCTION


def test_extract_falls_back_to_the_last_block_then_to_the_text() -> None:
    assert extract("```python\na\n```\n```python\ndef ff(x): f(x)\n```\n", "f") == "def ff(x): f(x)\n"
    assert extract("I cannot. ``` is a fence", "f") == "I cannot. ``` is a fence"
    assert extract("", "f") == ""


def test_extract_takes_methods_and_coroutines_as_definitions() -> None:
    block = "class A:\n    async def f (self): ...\n"
    assert extract(f"```\n{block}```\n```\nf\n```", "f") == block


# --- completing ------------------------------------------------------------------------------------------------------


def test_prelude_brings_what_the_answer_lacks() -> None:
    code = "def sum_0(numbers):\n    return sum(map(helper, numbers))\n"
    told = prelude(TASK, code)
    assert told == TASK.prompt[: TASK.prompt.index("def sum_0")].replace("\n\n\n", "\n").replace("\n\nL", "\nL")
    ast.parse(told)


def test_prelude_leaves_alone_what_the_answer_has() -> None:
    code = "import math\nLIMIT = 1\nfrom typing import *\ndef helper(x): return x + 1\ndef sum_0(n): ...\n"
    assert prelude(TASK, code) == "from typing import List, Optional\n"
    assert prelude(TASK, TASK.prompt + TASK.canonical_solution) == ""


def test_prelude_of_broken_code_is_whole() -> None:
    assert "import math" in prelude(TASK, "import math\ndef sum_0(:")


# --- asking and judging ----------------------------------------------------------------------------------------------


def test_prompt_quotes_the_task() -> None:
    task = Task("x", "def f():\n    '''{braces} %s'''\n", "f", "", "")
    assert humaneval.chat_prompt(task).endswith("block:\n```python\ndef f():\n    '''{braces} %s'''\n```")


def test_program_ends_in_the_check() -> None:
    assert program(TASK, "nothing").endswith("\ncheck(sum_0)\n")
