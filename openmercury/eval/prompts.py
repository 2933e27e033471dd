"""Prompts to measure speed with: HumanEval, MBPP, and a long coding set of about 1,000 tokens in and 1,000 out.

The long set stands for the one of the Mercury paper (arXiv 2506.17298), which is not public: each prompt shows solved
tasks of HumanEval and MBPP as a module and asks for a long one. It is the same for everyone with the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from openmercury.errors import InputError
from openmercury.eval.tasks import TASKS, mbpp
from openmercury.eval.tasks.base import Chat
from openmercury.text import chat
from openmercury.text.tokenizer import Tokenizer

SETS = ("humaneval", "mbpp", "long")
LONG_TOKENS = 1000
LONG_PROMPT = (
    "Here is a Python module:\n```python\n{code}\n```\nWrite a second, longer module that offers every function of it "
    "as a class with type hints, docstrings with examples, input checks and a unit test for each. Give the whole file."
)


@dataclass(frozen=True)
class PromptSet:
    """What a user says, and the token ids of it as a prompt; an answer has at most `max_tokens`, exactly so many where
    `ignore_eos` says so."""

    name: str
    texts: list[str]
    prompts: list[list[int]]
    max_tokens: int = 512
    ignore_eos: bool = False

    def with_limits(self, prompts: int | None, max_tokens: int | None) -> PromptSet:
        """The first prompts only, other lengths of answers; None leaves either as it is."""
        most = self.max_tokens if max_tokens is None else max_tokens
        return replace(self, texts=self.texts[:prompts], prompts=self.prompts[:prompts], max_tokens=most)


def load(name: str, folder: Path | None, tokenizer: Tokenizer) -> PromptSet:
    """One of `SETS` from a folder of evaluation data (None: `OPENMERCURY_EVAL_DATA`); raises DataError."""
    if name not in SETS:
        raise InputError(f"there is no prompt set {name!r}: use one of {', '.join(SETS)}")
    if name == "long":
        texts = list(_long(folder, tokenizer))
        return PromptSet(name, texts, [_render(tokenizer, text) for text in texts], LONG_TOKENS, ignore_eos=True)
    asked = [problem.prompt for problem in TASKS[name].problems(folder, "chat")]
    texts = [prompt.user for prompt in asked if isinstance(prompt, Chat)]
    return PromptSet(name, texts, [_render(tokenizer, text) for text in texts])


def _render(tokenizer: Tokenizer, text: str) -> list[int]:
    return chat.render(tokenizer, [{"role": "user", "content": text}])


def _long(folder: Path | None, tokenizer: Tokenizer) -> Iterator[str]:
    """As many functions in a row as fit into `LONG_TOKENS`, then the next ones; the last, short prompt is left out."""
    functions = [problem.row for problem in TASKS["humaneval"].problems(folder, "chat")]
    solved = [row["prompt"].strip() + "\n" + row["canonical_solution"].rstrip() for row in functions]
    solved += [mbpp.solution(problem.row) for problem in TASKS["mbpp"].problems(folder, "chat")]
    room = LONG_TOKENS - len(_render(tokenizer, LONG_PROMPT.format(code="")))
    held: list[str] = []
    for code in solved:
        size = len(tokenizer.encode("\n\n\n".join([*held, code])))
        if held and size > room:
            yield LONG_PROMPT.format(code="\n\n\n".join(held))
            held = []
        held.append(code)
