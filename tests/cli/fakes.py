"""A model that plays back written steps, and the command line with it: `python -m tests.cli.fakes generate …`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from openmercury.cli import generate, main
from openmercury.engine.params import SamplingParams
from openmercury.errors import ContextOverflowError
from openmercury.llm import DraftPiece, Output, Step, Usage

TEXT = "def add(a, b):\n    return a + b\n"
MASK = DraftPiece("", "masked")


def steps_of(text: str, size: int = 8, mode: Any = "diffusion") -> list[Step]:
    """Settle `text` in pieces of `size` characters; behind it stand half of the next piece and two masks."""
    steps = []
    for forward, end in enumerate(range(size, len(text) + size, size), 1):
        done = end >= len(text)
        draft = () if done else (DraftPiece(text[end : end + size // 2], "draft"), MASK, MASK)
        usage = Usage(5, len(text), forward, 0.5)
        output = Output(text, "stop", mode, usage, tuple(range(len(text)))) if done else None
        steps.append(Step(text[:end], draft, forward, None if output is None else "stop", output))
    return steps


class FakeLLM:
    """Answers everything with `text`; remembers what it was asked."""

    def __init__(self, text: str = TEXT, delay: float = 0.0) -> None:
        self.text, self.delay = text, delay
        self.folder = Path("models/fake")
        self.asked: list[tuple[str, Any, SamplingParams]] = []

    def stream(self, prompt: str, params: SamplingParams, *, show_draft: bool = False) -> Iterator[Step]:
        return self._play("raw", prompt, params)

    def stream_chat(
        self, messages: Sequence[Mapping[str, str]], params: SamplingParams, *, show_draft: bool = False
    ) -> Iterator[Step]:
        if "too long" in messages[-1]["content"]:
            raise ContextOverflowError("the prompt has 9 tokens and the context holds 8: shorten the prompt")
        return self._play("chat", [dict(message) for message in messages], params)

    def stream_fill(
        self, prefix: str, suffix: str, params: SamplingParams, *, show_draft: bool = False
    ) -> Iterator[Step]:
        return self._play("fill", (prefix, suffix), params)

    def _play(self, kind: str, asked: object, params: SamplingParams) -> Iterator[Step]:
        self.asked.append((kind, asked, params))
        return self._steps(params)

    def _steps(self, params: SamplingParams) -> Iterator[Step]:
        for step in steps_of(self.text, mode=params.mode):
            yield step
            time.sleep(self.delay)


def install(patch: pytest.MonkeyPatch, llm: FakeLLM) -> FakeLLM:
    """Let the commands find `llm` where they would load a model."""
    patch.setattr(generate, "load_llm", lambda *_: llm)
    return llm


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        install(patch, FakeLLM(TEXT * 40, delay=0.05))
        sys.exit(main.main())
