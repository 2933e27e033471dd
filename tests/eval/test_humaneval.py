"""The right code is taken out of an answer, run with what it needs, and counted; canonical answers score 100 %."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from openmercury.engine.params import SamplingParams
from openmercury.errors import DataError, SandboxError
from openmercury.eval import humaneval
from openmercury.eval.humaneval import Sample, Task, agreement, cost, read_samples
from openmercury.eval.sandbox import usable_backend
from tests.eval.made import BatchLLM, sample, tasks, write_data

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
    with pytest.raises(DataError, match="without 'test'"):
        humaneval.load(write_data(tmp_path / "other", [{"task_id": "1", "prompt": "", "entry_point": ""}]))
    folder = write_data(tmp_path / "cut")
    path = folder / "humaneval" / "HumanEval.jsonl.xz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot read"):
        humaneval.load(folder)


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
