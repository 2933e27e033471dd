"""One request and what it asks of the next forward.

A request has no phases. `tokens` is the committed text, `written` how much of it the KV cache holds. Each forward takes
a `Span`: the committed tokens not yet written, in `verified` the drafts under verification behind them, and noisy
groups. Prefill is a long span, a commit is the first tokens of the next one.

    verified, b = len(tokens), two drafts            diffusion, K = 4
    clean   t(b−1)  d(b)  d(b+1)                     clean   t(b−1)
    group 0 at b ‥  group 1 at b+1 ‥  group 2 …      group 0 at b ‥ b+3: settled tokens and masks
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from openmercury.engine.params import SamplingParams

FinishReason = Literal["stop", "length"]


@dataclass
class Span:
    """Positions of one request in one forward. `want` lists the rows whose predictions are read, in order."""

    ids: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    want: list[int] = field(default_factory=list)

    def add_clean(self, ids: list[int], start: int) -> None:
        """Append causal tokens at positions start, start + 1, …."""
        self.ids += ids
        self.position += range(start, start + len(ids))
        self.end += range(start + 1, start + len(ids) + 1)
        self.group += [-1] * len(ids)

    def add_group(self, ids: list[int], start: int, group: int) -> None:
        """Append a noisy group that sees the clean text before `start`."""
        self.ids += ids
        self.position += range(start, start + len(ids))
        self.end += [start] * len(ids)
        self.group += [group] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Request:
    """State of one request; only the engine's `apply` writes it."""

    prompt: list[int]
    params: SamplingParams
    eos: frozenset[int]
    width: int
    tokens: list[int] = field(init=False)
    written: int = 0
    block: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    forwards: int = 0
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def completion(self) -> list[int]:
        """The committed tokens behind the prompt."""
        return self.tokens[len(self.prompt) :]

    @property
    def remaining(self) -> int:
        """Tokens that may still be committed."""
        return len(self.prompt) + self.params.max_tokens - len(self.tokens)

    def commit(self, new: list[int]) -> None:
        """Append tokens that can no longer change, up to the end of text or the limit."""
        for token in new[: self.remaining]:
            self.tokens.append(token)
            if token in self.eos:
                self.finish_reason = "stop"
                return
        if self.remaining == 0:
            self.finish_reason = "length"
