"""Who answers: our engine, `transformers.generate`, or any server that speaks the OpenAI protocol.

A system has an `identity` that holds everything that decides its answers, so that answers can be kept under it, and
hands over each answer as it is finished. What cannot be asked of it (a prompt that is too long, say) is an answer with
an error: one bad prompt must not end a run.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from openmercury.errors import CheckpointError, InputError, UnsupportedError
from openmercury.eval.tasks.base import Chat, Continue, Fill, Prompt
from openmercury.text import chat, fim
from openmercury.text.stream import TextStream
from openmercury.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from openmercury.engine.params import SamplingParams
    from openmercury.llm import LLM, Output

OURS_CONCURRENCY = 32


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, whoever writes them. `max_tokens` None leaves each task its own."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Ask(NamedTuple):
    """One answer wanted: the seed differs from sample to sample."""

    prompt: Prompt
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """What came of one ask, as in `Sample`; `seconds` from when it was asked."""

    text: str
    finish_reason: str
    completion_tokens: int
    forwards: int | None
    seconds: float
    token_ids: tuple[int, ...] | None = None
    error: str | None = None


class System(Protocol):
    """One way to get answers."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that decides the answers beside the prompts and how they are drawn; plain JSON."""

    def warm_up(self, asks: int, sampling: Sampling) -> None:
        """Do what need not count as time of answering, before so many asks."""

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """(index, answer) in the order they are finished."""


def failed(reason: object) -> Answer:
    """No answer."""
    return Answer("", "error", 0, None, 0.0, error=" ".join(str(reason).split()))


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's files, its documents apart; 16 hex digits."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no model folder {folder}: give --model, or make one with `openmercury import`")
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(".") or path.suffix == ".md" or path.name == "LICENSE":
            continue
        with path.open("rb") as file:
            whole.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def render(tokenizer: Tokenizer, prompt: Prompt, eos: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
    """Token ids of a prompt, and the ids that end its answer."""
    match prompt:
        case Chat(user):
            return chat.render(tokenizer, [{"role": "user", "content": user}]), tuple(eos)
        case Continue(text):
            return tokenizer.encode(text), tuple(eos)
        case Fill(prefix, suffix):
            return fim.render_fill(tokenizer, prefix, suffix), (*eos, *fim.stop_ids(tokenizer))


def stops(prompt: Prompt) -> tuple[str, ...]:
    """The strings before the first of which an answer ends."""
    return () if isinstance(prompt, Chat) else prompt.stop


class _Readable(NamedTuple):
    """An ask in token ids, with its place among all asks."""

    number: int
    ask: Ask
    ids: list[int]
    ends: tuple[int, ...]


def _readable(
    tokenizer: Tokenizer, eos: Sequence[int], context: int, asks: Sequence[Ask]
) -> tuple[list[_Readable], list[tuple[int, Answer]]]:
    """The asks in token ids, and why the others cannot be answered."""
    good, bad = list[_Readable](), list[tuple[int, Answer]]()
    for number, ask in enumerate(asks):
        try:
            ids, ends = render(tokenizer, ask.prompt, eos)
        except (InputError, UnsupportedError) as error:
            bad.append((number, failed(error)))
            continue
        if len(ids) < context:
            good.append(_Readable(number, ask, ids, ends))
        else:
            bad.append((number, failed(f"the prompt has {len(ids)} tokens and the context holds {context}")))
    return good, bad


# --- our engine ------------------------------------------------------------------------------------------------------


class Ours:
    """`LLM` in one mode; the next request begins when one ends."""

    def __init__(self, llm: LLM, params: SamplingParams, *, concurrency: int | None = None) -> None:
        """`params` hold the mode and what belongs to it."""
        self.llm, self.params, self.concurrency = llm, params, concurrency or OURS_CONCURRENCY
        self._identity = {
            "kind": "openmercury",
            "model": llm.folder.resolve().name,
            "weights": fingerprint(llm.folder),
            "device": llm.device,
            "dtype": llm.dtype,
            **params.model_dump(include={"mode", "threshold", "edit_below", "block_size"}),
        }
        self._warm = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """Weights, number format, device, mode and what steers it."""
        return self._identity

    def warm_up(self, asks: int, sampling: Sampling) -> None:
        """Capture CUDA graphs for as many rows as there will be."""
        rows = min(self.concurrency, asks)
        if rows > self._warm:
            self.llm.warm_up(rows, self._params(Ask(Chat(""), self.params.max_tokens, 0), sampling))
            self._warm = rows

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """All asks in one stream through the engine."""
        good, bad = _readable(self.llm.tokenizer, self.llm.config.eos_ids, self.llm.config.max_context, asks)
        yield from bad
        ended: list[float] = []
        outputs = self.llm.stream_batch(
            [one.ids for one in good],
            [self._params(one.ask, sampling) for one in good],
            ends=[one.ends for one in good],
            concurrency=self.concurrency,
        )
        for number, output in outputs:
            # Of a closed loop the first begin at once, and then each as another ends.
            begun = 0.0 if number < self.concurrency else ended[number - self.concurrency]
            ended.append(output.usage.seconds)
            yield good[number].number, _answer(output, output.usage.seconds - begun)

    def _params(self, ask: Ask, sampling: Sampling) -> SamplingParams:
        update = {
            "max_tokens": ask.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": ask.seed,
            "stop": stops(ask.prompt),
        }
        return self.params.model_copy(update=update)


def _answer(output: Output, seconds: float) -> Answer:
    if output.error is not None:
        return failed(output.error)
    usage = output.usage
    return Answer(output.text, output.finish_reason, usage.completion_tokens, usage.forwards, seconds, output.token_ids)


# --- transformers ----------------------------------------------------------------------------------------------------


class Transformers:
    """Plain `transformers.generate` on a checkpoint's base weights; `concurrency` prompts are padded into one batch."""

    def __init__(self, folder: Path, *, device: str, dtype: str, concurrency: int | None = None) -> None:
        """Loads the network; raises CheckpointError, ConfigError, and UnsupportedError for other tokenizers."""
        from openmercury.eval import baseline

        self._identity = {"kind": "transformers", "model": folder.resolve().name, "weights": fingerprint(folder)}
        self.tokenizer = Tokenizer.load(folder)
        self.plain = baseline.load(folder, device, dtype)
        self._identity |= {"device": self.plain.device, "dtype": self.plain.dtype}
        self.concurrency = concurrency or 1

    @property
    def identity(self) -> Mapping[str, Any]:
        """Weights, number format and device; a batch is padded, which can turn a tie, so its size counts."""
        return {**self._identity, "batch": self.concurrency}

    def warm_up(self, asks: int, sampling: Sampling) -> None:
        """A few tokens, as the first forwards are slow."""
        ids = self.tokenizer.encode("def")
        self.plain.generate([ids], [()], [2], [TextStream(self.tokenizer)], temperature=0.0, top_p=1.0, seed=0)

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Batch after batch."""
        good, bad = _readable(self.tokenizer, self.plain.eos_ids, self.plain.context, asks)
        yield from bad
        for first in range(0, len(good), self.concurrency):
            batch = good[first : first + self.concurrency]
            begin = time.monotonic()
            streams = [TextStream(self.tokenizer, stops(one.ask.prompt)) for one in batch]
            written = self.plain.generate(
                [one.ids for one in batch],
                [one.ends for one in batch],
                [min(one.ask.max_tokens, self.plain.context - len(one.ids)) for one in batch],
                streams,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=batch[0].ask.seed,
            )
            for one, stream, (ids, reason) in zip(batch, streams, written, strict=True):
                yield one.number, Answer(stream.text, reason, len(ids), len(ids), time.monotonic() - begin, ids)


# --- who is asked ----------------------------------------------------------------------------------------------------


def seed_of(seed: int, problem: str, index: int) -> int:
    """The seed of one sample: the same whichever others are drawn beside it; 31 bits, which every server takes."""
    return random.Random(f"{seed} {index} {problem}").getrandbits(31)
