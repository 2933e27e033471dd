"""The right code is taken out of an answer, run with what it needs, and counted; canonical answers score 100 %."""

from __future__ import annotations

import ast
import dataclasses
import os
from pathlib import Path

import pytest

from openmercury.engine.params import SamplingParams
from openmercury.errors import DataError, SandboxError
from openmercury.eval import humaneval
from openmercury.eval.humaneval import Sample, Task, agreement, cost, extract, prelude, program, read_samples
from openmercury.eval.sandbox import usable_backend
from tests.eval.made import BatchLLM, rows, sample, tasks, write_data

FUNCTION = "def f(x):\n    return x\n"
TASK = tasks(1)[0]


@pytest.fixture
def sandbox() -> None:
    try:
        usable_backend()
    except SandboxError as error:
        pytest.skip(str(error))


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


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_score(sandbox: None) -> None:
    made = tasks(4)
    solved = [f"```python\n{task.prompt}{task.canonical_solution}```" for task in made]
    bare = "```python\ndef sum_0(numbers: List[int]):\n    return sum(map(helper, numbers))\n```"
    looping = "```python\ndef sum_2(numbers):\n    exit(0)\n```"
    answers = [bare, solved[1], looping, "I do not know."]
    seen: list[tuple[int, int]] = []
    verdicts = humaneval.score(
        made, [sample(*pair) for pair in zip(made, answers, strict=True)], lambda *at: seen.append(at)
    )
    assert [verdict.status for verdict in verdicts.values()] == ["passed", "passed", "failed", "failed"]
    assert list(verdicts) == [task.task_id for task in made]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_unsolved_prompts_fail(sandbox: None) -> None:
    made = tasks(2)
    samples = [sample(task, f"```python\n{task.prompt}```") for task in made]
    assert not any(verdict.passed for verdict in humaneval.score(made, samples).values())


def test_score_refuses_unknown_tasks(sandbox: None) -> None:
    with pytest.raises(DataError, match="Made/1"):
        humaneval.score(tasks(1), [sample(tasks(2)[1], "")])


@pytest.mark.slow
def test_canonical_solutions_pass(sandbox: None) -> None:
    if "OPENMERCURY_EVAL_DATA" not in os.environ:
        pytest.skip("needs HumanEval: set OPENMERCURY_EVAL_DATA")
    benchmark = humaneval.load()

    def passed(answer: str, cut: bool) -> int:
        samples = []
        for task in benchmark:
            prompt = task.prompt[task.prompt.rindex(f"def {task.entry_point}") :] if cut else task.prompt
            samples.append(sample(task, answer.format(prompt + task.canonical_solution)))
        return sum(verdict.passed for verdict in humaneval.score(benchmark, samples).values())

    assert passed("Here it is:\n```python\n{}```\nDone.", cut=False) == 164
    assert passed("```python\n{}", cut=True) == 164  # imports and helpers come from the prompt


# --- generating ------------------------------------------------------------------------------------------------------


def test_generate_goes_in_batches_and_reports_overall_progress() -> None:
    llm, made = BatchLLM(), tasks(5)
    seen: list[tuple[int, int]] = []
    batches = list(humaneval.generate(llm, made, SamplingParams(mode="ar"), 2, lambda *at: seen.append(at)))  # type: ignore[arg-type]
    assert [[one.task_id for one in batch] for batch in batches] == [
        ["Made/0", "Made/1"],
        ["Made/2", "Made/3"],
        ["Made/4"],
    ]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert all(one.completion_tokens == 6 and one.forwards == 2 and len(one.token_ids) == 6 for one in batches[0])


def test_prompt_quotes_the_task() -> None:
    task = Task("x", "def f():\n    '''{braces} %s'''\n", "f", "", "")
    assert humaneval.chat_prompt(task).endswith("block:\n```python\ndef f():\n    '''{braces} %s'''\n```")


def test_cost_counts_both_ways() -> None:
    task = tasks(1)[0]
    told = cost([sample(task, "", forwards=2, tokens=6), sample(task, "", forwards=10, tokens=10)])
    assert (told.n, told.tokens, told.forwards, told.truncated) == (2, 16, 12, 0)
    assert told.tpf == pytest.approx(16 / 12)
    assert told.tpf_mean == pytest.approx((3 + 1) / 2)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_samples_survive_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    kept = [sample(task, "a\nb é\u2028 \ufffd") for task in tasks(3)]
    humaneval.write_samples(path, kept)
    assert read_samples(path) == kept
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"task_id": "a"}', "3"])
def test_what_is_no_file_of_samples_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="--samples"):
        read_samples(path)


def test_two_samples_of_a_task_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    humaneval.write_samples(path, [sample(TASK, "a"), sample(TASK, "b")])
    with pytest.raises(DataError, match="one sample for each task"):
        read_samples(path)


def test_agreement_is_by_token() -> None:
    left = [sample(task, "same") for task in tasks(3)]
    right: list[Sample] = [dataclasses.replace(left[1], token_ids=(9,)), left[2], left[0]]
    assert agreement(left, right) == (["Made/1"], 3)
    with pytest.raises(DataError, match="different tasks"):
        agreement(left, right[:2])


def test_program_ends_in_the_check() -> None:
    assert program(TASK, "nothing").endswith("\ncheck(sum_0)\n")
