"""Text in, text out: the public door to a checkpoint.

llm = LLM()
print(llm.chat([{"role": "user", "content": "Write is_prime(n) in Python."}]).text)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openmercury.diffusion.bound import TokenOdds, continuation_nll, token_odds
from openmercury.engine.config import EngineConfig
from openmercury.engine.engine import Engine
from openmercury.engine.params import Mode, SamplingParams
from openmercury.engine.request import FinishReason, Request
from openmercury.engine.setup import setup
from openmercury.engine.stats import EngineStats
from openmercury.errors import CheckpointError, ContextOverflowError, EmptyPromptError, OpenMercuryError
from openmercury.model.config import ModelConfig, read_config
from openmercury.model.costs import FORMATS, pack_as
from openmercury.model.device import pick_device
from openmercury.model.weights import Progress, load_model
from openmercury.text import chat, fim
from openmercury.text.stream import TextStream
from openmercury.text.tokenizer import Tokenizer

SHIPPED = Path(__file__).resolve().parents[1] / "models" / "openmercury-nano"


@dataclass(frozen=True)
class Usage:
    """Cost of one answer. `forwards` counts every forward but those that only filled the cache with a long prompt."""

    prompt_tokens: int
    completion_tokens: int
    forwards: int
    seconds: float

    @property
    def tokens_per_forward(self) -> float:
        """TPF: completion tokens ÷ forwards."""
        return self.completion_tokens / max(1, self.forwards)


@dataclass(frozen=True)
class Output:
    """One finished answer. `completion_tokens` includes the end-of-text token, `text` does not.

    `error` is what ended an answer of a batch with finish_reason "error"; `text` is what had been written by then.
    """

    text: str
    finish_reason: FinishReason
    mode: Mode
    usage: Usage
    token_ids: tuple[int, ...]
    error: OpenMercuryError | None = None


@dataclass(frozen=True)
class DraftPiece:
    """A run of the active block: text not settled yet, or one masked position (empty text)."""

    text: str
    state: Literal["masked", "draft"]


@dataclass(frozen=True)
class Step:
    """What stands after one forward: settled text, the active block, and the output once finished."""

    text: str
    draft: tuple[DraftPiece, ...]
    forward: int
    finish_reason: FinishReason | None = None
    output: Output | None = None
    tokens: int = 0  # completion tokens committed so far


def default_model() -> Path:
    """`OPENMERCURY_MODEL`, else the shipped folder."""
    return Path(os.environ.get("OPENMERCURY_MODEL") or SHIPPED)


def find(model: str | Path | None) -> Path:
    """The folder of a checkpoint, None: of the default one; raises CheckpointError where there is none."""
    folder = default_model() if model is None else Path(model)
    if not folder.is_dir():
        raise CheckpointError(f"there is no model folder {folder}: give --model, or make one with `openmercury import`")
    return folder


class LLM:
    """A loaded checkpoint with its tokenizer and engine.

    `engine_changes` are settings of `EngineConfig` beside those that suit the machine.

    A request that fails (`errors.RequestFailedError`) raises where it was the only one; among others it is an `Output`
    with finish_reason "error", so that the rest of the batch is not lost.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        engine: EngineConfig | None = None,
        engine_changes: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        folder = find(model)
        begin = time.monotonic()
        on = pick_device(device)
        self.config = read_config(folder)
        chosen = setup(dtype, on.type, self.config, engine=engine)
        self.folder, self.device, self.dtype = folder, str(on), chosen.dtype
        self.tokenizer = Tokenizer.load(folder)
        kind = FORMATS[chosen.dtype]
        settings = EngineConfig.model_validate({**chosen.engine.model_dump(), **(engine_changes or {})})
        network = load_model(folder, dtype=kind.dtype, device=on, config=self.config, progress=progress)
        pack_as(kind, network)
        self.engine = Engine(network, settings)
        self.load_seconds = time.monotonic() - begin

    def generate(self, prompt: str, params: SamplingParams | None = None) -> Output:
        """Continue raw text; control tokens written in it act as such."""
        return _last(self.stream(prompt, params))

    def chat(self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None) -> Output:
        """Answer a conversation through the checkpoint's chat template."""
        return _last(self.stream_chat(messages, params))

    def fill(self, prefix: str, suffix: str = "", params: SamplingParams | None = None) -> Output:
        """Write what stands between two pieces of code; it ends where it begins to repeat the second."""
        return _last(self.stream_fill(prefix, suffix, params))

    def stream(self, prompt: str, params: SamplingParams | None = None, *, show_draft: bool = False) -> Iterator[Step]:
        """One `Step` per forward of `generate`."""
        if not prompt:
            raise EmptyPromptError("the prompt is empty: give some text to continue")
        return self._steps(self.tokenizer.encode(prompt, special=True), params, self.config.eos_ids, show_draft)

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams | None = None, *, show_draft: bool = False
    ) -> Iterator[Step]:
        """One `Step` per forward of `chat`."""
        return self._steps(chat.render(self.tokenizer, messages), params, self.config.eos_ids, show_draft)

    def stream_fill(
        self, prefix: str, suffix: str = "", params: SamplingParams | None = None, *, show_draft: bool = False
    ) -> Iterator[Step]:
        """One `Step` per forward of `fill`."""
        params = params or SamplingParams()
        params = params.model_copy(update={"stop": (*params.stop, *fim.suffix_stops(suffix))})
        ids = fim.render_fill(self.tokenizer, prefix, suffix)
        return self._steps(ids, params, (*self.config.eos_ids, *fim.stop_ids(self.tokenizer)), show_draft)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        on_progress: Callable[[int, int], None] | None = None,
        *,
        concurrency: int | None = None,
        arrivals: Sequence[float] | None = None,
        on_tokens: Callable[[int, int], None] | None = None,
    ) -> list[Output]:
        """The outputs of `stream_batch` in the order of the prompts."""
        outputs = dict(
            self.stream_batch(
                prompts, params, on_progress, concurrency=concurrency, arrivals=arrivals, on_tokens=on_tokens
            )
        )
        return [outputs[number] for number in range(len(prompts))]

    def stream_batch(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        on_progress: Callable[[int, int], None] | None = None,
        *,
        ends: Sequence[Sequence[int] | None] | None = None,
        concurrency: int | None = None,
        arrivals: Sequence[float] | None = None,
        on_tokens: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[int, Output]]:
        """Decode prompts of token ids together; yields (index, output) as each ends.

        `ends` are the ids that end each answer (None: the checkpoint's). `on_progress(finished, total)` is called after
        each forward. `concurrency` bounds how many are under way at once; the next begins when one finishes. `arrivals`
        are the seconds after which each begins, ascending. `on_tokens(index, tokens)` tells the completion tokens of a
        request whenever it goes on. `usage.seconds` is the time of the whole batch up to the request's end.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        eos = [None] * len(prompts) if ends is None else ends
        requests = [self.engine.request(*asked) for asked in zip(prompts, each, eos, strict=True)]
        streams = [TextStream(self.tokenizer, request.params.stop) for request in requests]
        seen, finished = [0] * len(requests), 0
        index = {id(request): number for number, request in enumerate(requests)}
        begin = time.monotonic()
        for running in self.engine.generate(requests, concurrency=concurrency, arrivals=arrivals):
            ended = []
            for request in running:
                number = index[id(request)]
                if on_tokens is not None:
                    on_tokens(number, len(request.completion))
                if request.params.stop or request.finish_reason is not None:
                    seen[number] = _feed(streams[number], request, seen[number])
                if request.finish_reason is not None:
                    ended.append((number, _output(request, streams[number], seen[number], time.monotonic() - begin)))
            finished += len(ended)
            if on_progress is not None:
                on_progress(finished, len(requests))
            yield from ended

    def log_likelihoods(self, ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """log p (nats) of each continuation behind `ids`, as the clean, autoregressive side has it: not sampled, and
        without penalties. Raises EmptyPromptError, and ContextOverflowError where the context cannot hold one."""
        if not ids or not all(continuations):
            raise EmptyPromptError("a text or a continuation is empty: give at least one token of each")
        longest = len(ids) + max(map(len, continuations), default=0)
        if longest > self.config.max_context:
            raise ContextOverflowError(
                f"the prompt and its answers have {longest} tokens and the context holds {self.config.max_context}: "
                "shorten the prompt"
            )
        return [-nll for nll in continuation_nll(self.engine.model, ids, continuations)] if continuations else []

    def token_odds(self, ids: Sequence[int], begin: int, top: int) -> list[TokenOdds]:
        """log p (nats) of each token from index `begin` ≥ 1 on, and of the `top` likeliest in its place, as the clean
        side has them: at temperature 1, without penalties and constraints."""
        return token_odds(self.engine.model, ids, begin, top)

    def warm_up(self, requests: int, params: SamplingParams | None = None, *, expected: bool = False) -> None:
        """Capture CUDA graphs before they are needed: those that read prompts, and those that decode up to so many
        requests of these params at once, `expected` text and all. On a CPU there is nothing to do."""
        self.engine.warm_up(requests, params or SamplingParams(), expected=expected)

    def record(self) -> EngineStats:
        """Have the engine time its parts from now on; see `engine.stats`."""
        return self.engine.record()

    def _steps(
        self, ids: Sequence[int], params: SamplingParams | None, eos: Sequence[int], show_draft: bool
    ) -> Iterator[Step]:
        # Checked here, not at the first `next`, so that a wrong prompt fails where it is given.
        request = self.engine.request(ids, params or SamplingParams(), eos)
        return self._run(request, show_draft)

    def _run(self, request: Request, show_draft: bool) -> Iterator[Step]:
        stream = TextStream(self.tokenizer, request.params.stop)
        seen, begin = 0, time.monotonic()
        for _ in self.engine.generate([request], wait=show_draft):
            seen = _feed(stream, request, seen)
            if request.finish_reason == "error" and request.error is not None:
                raise request.error
            output = None if request.finish_reason is None else _output(request, stream, seen, time.monotonic() - begin)
            draft: tuple[DraftPiece, ...] = ()
            if show_draft and output is None:
                ids = self.engine.drafts(request)
                draft = draft_pieces(self.tokenizer, self.config, ids, request.params.mode)
            yield Step(stream.text, draft, request.forwards, request.finish_reason, output, len(request.completion))


def draft_pieces(tokenizer: Tokenizer, config: ModelConfig, ids: Sequence[int], mode: Mode) -> tuple[DraftPiece, ...]:
    """The active block or the drafts of a request of this mode, for display."""
    if mode in ("verified", "auto"):
        return (DraftPiece(tokenizer.decode(ids), "draft"),) if ids else ()
    mask = None if config.diffusion is None else config.diffusion.mask_id
    return tuple(
        DraftPiece("", "masked") if token == mask else DraftPiece(tokenizer.decode([token]), "draft") for token in ids
    )


def _feed(stream: TextStream, request: Request, seen: int) -> int:
    """Pass newly committed tokens to the text stream; a stop string or the end of text finishes the request.

    Returns how many tokens the text took: those that a forward committed behind a stop string are no part of it.
    """
    if not request.params.stop:  # the usual case in bulk, where a call for each token would take as long as a forward
        stream.push(token for token in request.completion[seen:] if token not in request.eos)
        seen = len(request.completion)
    for token in request.completion[seen:]:
        seen += 1
        if token not in request.eos:
            stream.push([token])
        if stream.finished_by_stop:
            break
    if request.finish_reason is not None:
        stream.flush()
    if stream.finished_by_stop:
        request.finish_reason = "stop"
    return seen


def _output(request: Request, stream: TextStream, seen: int, seconds: float) -> Output:
    assert request.finish_reason is not None
    ids = tuple(request.completion[:seen])
    usage = Usage(len(request.prompt), len(ids), request.forwards, seconds)
    error = request.error if request.finish_reason == "error" else None  # a stop string may have come before it
    return Output(stream.text, request.finish_reason, request.params.mode, usage, ids, error)


def _last(steps: Iterator[Step]) -> Output:
    output = None
    for step in steps:
        output = step.output
    assert output is not None
    return output
