"""One request as the host sees it: what was asked, what is committed, where it lives.

A request has no phases. `tokens` is the committed text, `written` how much of it the KV cache holds; prefill brings
`written` to one less than the text, and the rest happens in `state.Slots` on the device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from openmercury.diffusion.sample import Sampling
from openmercury.engine.constraint import Constraint
from openmercury.engine.expected import COPY_WIDTH, Expected
from openmercury.engine.params import Mode, SamplingParams
from openmercury.errors import OpenMercuryError

FinishReason = Literal["stop", "length", "deadline", "abort", "error"]  # error: `Request.error` says which


@dataclass(eq=False)
class Request:
    """State of one request; only the engine writes it. A caller may end it by setting `finish_reason`."""

    prompt: list[int]
    params: SamplingParams
    eos: frozenset[int]
    width: int
    expected: Expected | None = None
    constraint: Constraint | None = None
    tokens: list[int] = field(init=False)
    forwards: int = 0
    finish_reason: FinishReason | None = None
    error: OpenMercuryError | None = None
    expires: float | None = None  # time.monotonic() at which it ends
    admitted: float | None = None  # time.monotonic() at which it first left the queue
    suspects: int = 0  # after a fault, only requests of the same number share a forward; 0: free of suspicion

    slot: int | None = None
    pages: list[int] = field(default_factory=list)
    written: int = 0
    cached: int = 0  # tokens of the prompt that the prefix cache held at admission
    prefill_end: int = 0  # where prefill stops: one less than the text at admission
    launched: int = 0  # tokens that forwards under way may commit at most
    over: bool = False  # its row has ended on the device
    ahead: Tensor | None = None  # the active block of a preempted request
    copied: list[int] = field(default_factory=list)  # drafts of the next forward, from the expected text

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def completion(self) -> list[int]:
        """The committed tokens behind the prompt."""
        return self.tokens[len(self.prompt) :]

    @property
    def limit(self) -> int:
        """The length at which the text ends."""
        return len(self.prompt) + self.params.max_tokens

    @property
    def mode(self) -> Mode:
        """How it is decoded."""
        return self.params.mode

    @property
    def sampling(self) -> Sampling:
        """What choosing its tokens needs."""
        if self.params.temperature == 0:
            return "greedy"
        return "truncated" if self.params.top_k or self.params.top_p < 1 else "sampled"

    @property
    def penalised(self) -> bool:
        """Does what is written already weigh on what comes?"""
        p = self.params
        return bool(p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1)

    @property
    def sound(self) -> bool:
        """Has a token come out of all that prefill wrote? Until then nobody knows whether that was finite."""
        return len(self.tokens) > self.prefill_end + 1 and self.error is None

    def copy(self) -> bool:
        """Draft from the expected text; False where it says nothing. No forward may be under way."""
        if self.expected is not None:
            assert not self.launched
            # The last token of all is exact, so that it need not be drafted; beyond it there are no pages.
            self.copied = self.expected.drafts(self.tokens, min(COPY_WIDTH, self.limit - len(self.tokens) - 1))
        return bool(self.copied)

    def fail(self, error: OpenMercuryError) -> None:
        """End it with an error."""
        self.finish_reason, self.error = "error", error

    @property
    def unwritten(self) -> int:
        """Tokens that prefill has still to write; later ones ride in decoding forwards."""
        return max(0, self.prefill_end - self.written)
