"""Contestants that need no model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openmercury.eval.arena.match import Arena, Contestant
from openmercury.eval.arena.votes import Votes
from openmercury.eval.systems import Answer, Ask, Sampling, failed
from openmercury.eval.tasks.base import Fill


class Echo:
    """Answers with its own mark, `seconds` after it was asked; cannot answer a prefix that says so."""

    def __init__(self, mark: str, seconds: float = 1.0) -> None:
        self.mark, self.seconds = mark, seconds
        self.asked: list[Ask] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "echo", "model": self.mark}

    def warm_up(self, asks: int, sampling: Sampling) -> None:
        pass

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        for index, ask in enumerate(asks):
            self.asked.append(ask)
            unable = isinstance(ask.prompt, Fill) and ask.prompt.prefix == "unable"
            yield index, failed("too long") if unable else Answer(self.mark, "stop", 10, 5, self.seconds)


def arena(folder: Path, *, marks: tuple[str, str] = ("left", "right"), seed: int = 0) -> Arena:
    """`a` takes a second and says the first mark, `b` half of that and the second."""
    pair = Contestant("a", Echo(marks[0], 1.0)), Contestant("b", Echo(marks[1], 0.5))
    return Arena(pair, Votes(folder / "votes.sqlite"), Sampling(), 64, random.Random(seed))
