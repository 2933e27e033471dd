"""One request as the host sees it: what was asked, what is committed, where it lives.

A request has no phases. `tokens` is the committed text, `written` how much of it the KV cache holds; prefill brings
`written` to one less than the text, and the rest happens in `state.Slots` on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from openmercury.diffusion.sample import Sampling
from openmercury.engine.constraint import Constraint
from openmercury.engine.expected import COPY_WIDTH, COPYING_MODES, Expected
from openmercury.engine.params import Mode, SamplingParams
from openmercury.engine.state import MAX_STOP_IDS
from openmercury.errors import (
    ContextOverflowError,
    EmptyPromptError,
    InputError,
    OpenMercuryError,
    UnsupportedError,
)
from openmercury.model.config import ModelConfig

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
    watched: bool = False  # are its drafts shown, so that each forward is to be read?
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


def asked(
    config: ModelConfig,
    prompt: Sequence[int],
    params: SamplingParams,
    eos: Sequence[int] | None,
    expected: Sequence[int] | None,
    constraint: Constraint | None,
    width: int,
) -> Request:
    """What is asked of a checkpoint, with `max_tokens` that fit into its context and the tokens that end the answer.

    Raises InputError or UnsupportedError with the remedy.
    """
    if not prompt:
        raise EmptyPromptError("the prompt is empty: give at least one token")
    if len(prompt) >= config.max_context:
        raise ContextOverflowError(
            f"the prompt has {len(prompt)} tokens and the context holds {config.max_context}: shorten the prompt"
        )
    if params.mode in ("verified", "diffusion") and config.diffusion is None:
        raise UnsupportedError(
            f"this checkpoint was not trained to denoise, so mode {params.mode} cannot run: use mode ar or train it"
        )
    if expected is not None and params.mode not in COPYING_MODES:
        raise InputError(f"expected tokens only act in modes verified and auto, not in {params.mode}: drop them")
    for name, ids in (("prompt", prompt), ("expected text", expected)):
        if ids and not 0 <= min(ids) <= max(ids) < config.vocab_size:
            raise InputError(f"the {name} has ids outside 0 ‥ {config.vocab_size - 1}: use this checkpoint's tokenizer")
    room = config.max_context - len(prompt)
    if params.max_tokens > room:
        params = params.model_copy(update={"max_tokens": room})
    ends = frozenset[int]() if params.ignore_eos else frozenset(config.eos_ids if eos is None else eos)
    if len(ends) > MAX_STOP_IDS:
        raise InputError(f"there are {len(ends)} stop ids and room for {MAX_STOP_IDS}: give fewer")
    if constraint is not None and params.ignore_eos:
        raise InputError("ignore_eos lets no grammar end the answer: drop it or the grammar")
    if constraint is not None and expected:
        raise InputError("expected tokens and a grammar do not go together: drop one of them")
    source = Expected(expected, len(prompt)) if expected else None
    return Request(list(prompt), params, ends, width, source, constraint)
