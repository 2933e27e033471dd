"""HumanEval: 164 Python functions to complete from signature and docstring, judged by their unit tests.

    task → chat prompt → `LLM` → Sample (the raw answer, kept) → eval.tasks → sandbox → Verdict

Generating and scoring are apart: samples can be scored again, or compared between two modes of decoding. The data is
that of Chen et al. 2021 (arXiv 2107.03374), prompts go through the checkpoint's chat template.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from openmercury.errors import DataError
from openmercury.eval.sandbox import Verdict, run_python, usable_backend
from openmercury.eval.tasks.base import Chat, Problem, Program
from openmercury.eval.tasks.functions import HumanEval, ask
from openmercury.text import chat

if TYPE_CHECKING:
    from openmercury.engine.params import SamplingParams
    from openmercury.llm import LLM

WORKERS = 2
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Task:
    """One problem: `prompt` ends where the function's body begins, `test` defines `check(candidate)`."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str


@dataclass(frozen=True)
class Sample:
    """One answer as the model gave it, and its cost."""

    task_id: str
    answer: str
    token_ids: tuple[int, ...]
    finish_reason: str
    forwards: int
    completion_tokens: int


@dataclass(frozen=True)
class Cost:
    """What a set of answers took. `tpf` is total tokens ÷ total forwards, `tpf_mean` the mean over answers."""

    n: int
    tokens: int
    forwards: int
    tpf: float
    tpf_mean: float
    truncated: int


def load(folder: Path | None = None) -> list[Task]:
    """The tasks, from `humaneval/HumanEval.jsonl.xz` in a folder (None: `OPENMERCURY_EVAL_DATA`); raises DataError."""
    rows = [problem.row for problem in HumanEval().problems(folder, "chat")]
    return [Task(**{field.name: row[field.name] for field in fields(Task)}) for row in rows]


# --- from task to answer ---------------------------------------------------------------------------------------------


def chat_prompt(task: Task) -> str:
    """What the user's one message says."""
    prompt = ask(task.prompt, "chat")
    assert isinstance(prompt, Chat)
    return prompt.user


def generate(
    llm: LLM, tasks: Sequence[Task], params: SamplingParams, batch_size: int, on_progress: Progress | None = None
) -> Iterator[list[Sample]]:
    """Answer the tasks, `batch_size` at a time; yields the samples of each batch.

    `on_progress(finished, total)` is called after each forward.
    """
    for first in range(0, len(tasks), batch_size):
        batch = tasks[first : first + batch_size]
        prompts = [chat.render(llm.tokenizer, [{"role": "user", "content": chat_prompt(task)}]) for task in batch]
        advance = None if on_progress is None else _behind(first, len(tasks), on_progress)
        outputs = llm.generate_batch(prompts, params, on_progress=advance)
        for output in outputs:
            if output.error is not None:  # a fault of ours is no wrong answer of the model's
                raise output.error
        yield [
            Sample(
                task_id=task.task_id,
                answer=output.text,
                token_ids=output.token_ids,
                finish_reason=output.finish_reason,
                forwards=output.usage.forwards,
                completion_tokens=output.usage.completion_tokens,
            )
            for task, output in zip(batch, outputs, strict=True)
        ]


def _behind(first: int, total: int, on_progress: Progress) -> Progress:
    return lambda finished, _: on_progress(first + finished, total)


def cost(samples: Sequence[Sample]) -> Cost:
    """Tokens and forwards of at least one answer."""
    tokens = sum(sample.completion_tokens for sample in samples)
    forwards = sum(sample.forwards for sample in samples)
    return Cost(
        n=len(samples),
        tokens=tokens,
        forwards=forwards,
        tpf=tokens / max(1, forwards),
        tpf_mean=sum(sample.completion_tokens / max(1, sample.forwards) for sample in samples) / len(samples),
        truncated=sum(sample.finish_reason == "length" for sample in samples),
    )


# --- from answer to verdict ------------------------------------------------------------------------------------------


def score(
    tasks: Sequence[Task], samples: Sequence[Sample], on_progress: Progress | None = None, *, workers: int = WORKERS
) -> dict[str, Verdict]:
    """Run every sample against its task's tests; raises SandboxError or DataError (a sample of an unknown task)."""
    usable_backend()
    by_id = {task.task_id: task for task in tasks}
    unknown = [sample.task_id for sample in samples if sample.task_id not in by_id]
    if unknown:
        raise DataError(f"task {unknown[0]!r} is not in HumanEval: score samples of this benchmark only")
    programs = [_program(by_id[sample.task_id], sample.answer) for sample in samples]
    verdicts: dict[str, Verdict] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        runs = pool.map(_run, programs)
        for sample, verdict in zip(samples, runs, strict=True):
            verdicts[sample.task_id] = verdict
            if on_progress is not None:
                on_progress(len(verdicts), len(samples))
    finally:
        pool.shutdown(cancel_futures=True)
    return verdicts


def _program(task: Task, answer: str) -> Program:
    return HumanEval().program(Problem(task.task_id, ask(task.prompt, "chat"), asdict(task)), answer)


def _run(program: Program) -> Verdict:
    return run_python(program.source, timeout=program.timeout, memory_bytes=program.memory_bytes)


# --- samples on disk -------------------------------------------------------------------------------------------------


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    write_whole(path, "".join(json.dumps(asdict(sample)) + "\n" for sample in samples))


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, one for each task; raises DataError when it is missing, empty or not one of ours."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        samples = [_sample(row) for row in rows]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a file written by --samples") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a file of samples ({error}): give one written by --samples") from None
    if not samples or len({sample.task_id for sample in samples}) < len(samples):
        raise DataError(f"{path} should hold one sample for each task and at least one: write it again by --samples")
    return samples


def _sample(row: Mapping[str, object]) -> Sample:
    given = {field.name: row[field.name] for field in fields(Sample)}
    ids = given.pop("token_ids")
    if not isinstance(ids, list) or not isinstance(given["answer"], str):
        raise ValueError("answer should be text and token_ids a list")
    return Sample(**given, token_ids=tuple(ids))  # type: ignore[arg-type]


def agreement(left: Sequence[Sample], right: Sequence[Sample]) -> tuple[list[str], int]:
    """Tasks answered differently, token for token, and the number compared; raises DataError for different tasks."""
    others = {sample.task_id: sample for sample in right}
    if {sample.task_id for sample in left} != set(others):
        raise DataError("the two files hold samples of different tasks: generate both with the same --limit")
    return [one.task_id for one in left if one.token_ids != others[one.task_id].token_ids], len(left)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
