"""Prompts to measure speed with: HumanEval, MBPP, and a long coding set of about 1,000 tokens in and 1,000 out.

The long set stands for the one of the Mercury paper (arXiv 2506.17298), which is not public: each prompt shows solved
tasks of HumanEval and MBPP as a module and asks for a long one. It is the same for everyone with the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from openmercury.data.decontaminate import eval_folder, read_rows
from openmercury.errors import DataError, InputError
from openmercury.eval import humaneval
from openmercury.text import chat
from openmercury.text.tokenizer import Tokenizer

SETS = ("humaneval", "mbpp", "long")
MBPP_TEST = range(11, 511)
MBPP_PROMPT = (
    "You are an expert Python programmer, and here is your task: {text} "
    "Your code should pass these tests:\n\n```python\n{tests}\n```"
)
LONG_TOKENS = 1000
LONG_PROMPT = (
    "Here is a Python module:\n```python\n{code}\n```\nWrite a second, longer module that offers every function of it "
    "as a class with type hints, docstrings with examples, input checks and a unit test for each. Give the whole file."
)


@dataclass(frozen=True)
class PromptSet:
    """Token ids of prompts; an answer has at most `max_tokens`, exactly so many where `ignore_eos` says so."""

    name: str
    prompts: list[list[int]]
    max_tokens: int = 512
    ignore_eos: bool = False

    def with_limits(self, prompts: int | None, max_tokens: int | None) -> PromptSet:
        """The first prompts only, other lengths of answers; None leaves either as it is."""
        most = self.max_tokens if max_tokens is None else max_tokens
        return replace(self, prompts=self.prompts[:prompts], max_tokens=most)


def load(name: str, folder: Path | None, tokenizer: Tokenizer) -> PromptSet:
    """One of `SETS` from a folder of evaluation data (None: `OPENMERCURY_EVAL_DATA`); raises DataError."""
    if name not in SETS:
        raise InputError(f"there is no prompt set {name!r}: use one of {', '.join(SETS)}")
    if name == "long":
        return PromptSet(name, list(_long(folder, tokenizer)), LONG_TOKENS, ignore_eos=True)
    tasks = humaneval.load(folder) if name == "humaneval" else []
    texts = [humaneval.chat_prompt(task) for task in tasks] or [
        MBPP_PROMPT.format(text=text, tests="\n".join(tests)) for text, tests, _ in _mbpp(folder)
    ]
    return PromptSet(name, [_render(tokenizer, text) for text in texts])


def _render(tokenizer: Tokenizer, text: str) -> list[int]:
    return chat.render(tokenizer, [{"role": "user", "content": text}])


def _mbpp(folder: Path | None) -> list[tuple[str, list[str], str]]:
    """(text, tests, code) of the 500 test tasks."""
    path = eval_folder(folder) / "mbpp" / "mbpp.jsonl.xz"
    try:
        rows = [row for row in read_rows(path) if row["task_id"] in MBPP_TEST]
        return [(row["text"], row["test_list"], row["code"].replace("\r\n", "\n").strip()) for row in rows]
    except KeyError as error:
        raise DataError(f"{path.name} has a row without {error}: restore the file") from None


def _long(folder: Path | None, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """As many functions in a row as fit into `LONG_TOKENS`, then the next ones; the last, short prompt is left out."""
    solved = [task.prompt.strip() + "\n" + task.canonical_solution.rstrip() for task in humaneval.load(folder)]
    solved += [code for _, _, code in _mbpp(folder)]
    room = LONG_TOKENS - len(_render(tokenizer, LONG_PROMPT.format(code="")))
    held: list[str] = []
    for code in solved:
        size = len(tokenizer.encode("\n\n\n".join([*held, code])))
        if held and size > room:
            yield _render(tokenizer, LONG_PROMPT.format(code="\n\n\n".join(held)))
            held = []
        held.append(code)
