"""One checkpoint behind one engine: prompts of token ids in, pieces of settled text out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from openmercury.diffusion.bound import TokenOdds
from openmercury.engine.async_engine import AsyncEngine, Stream, Update
from openmercury.engine.constraint import Constraint
from openmercury.engine.params import Mode, SamplingParams
from openmercury.llm import LLM, DraftPiece, draft_pieces
from openmercury.server.remote import RemoteLLM
from openmercury.text.grammar import Grammars
from openmercury.text.stream import TextStream

Finish = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Piece:
    """What came since the last one: `text` can never change; `tokens` and `forwards` count from the start.

    `cached` are the tokens of the prompt that the prefix cache held; `ids` the tokens that came, the end of text left
    out.
    """

    text: str
    tokens: int
    forwards: int
    draft: tuple[DraftPiece, ...]
    finish_reason: Finish | None
    cached: int = 0
    ids: tuple[int, ...] = ()


class Answer:
    """The pieces of one answer, for one reader; ends behind the piece with a finish_reason, an error is raised.

    `aclose`, or cancelling the task that awaits a piece, aborts the request within one step.
    """

    def __init__(
        self, llm: LLM | RemoteLLM, stream: Stream, stop: Sequence[str], ends: frozenset[int], mode: Mode
    ) -> None:
        self._llm, self._stream, self._stop, self._ends, self._mode = llm, stream, stop, ends, mode
        self._text = TextStream(llm.tokenizer, stop)
        self._tokens, self._ended = 0, False

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Piece:
        if self._ended:
            raise StopAsyncIteration
        return self._take(await anext(self._stream))

    async def next(self) -> Piece:
        """As `anext`, which is no coroutine and so can be no task."""
        return await anext(self)

    @property
    def admitted(self) -> float | None:
        """When it left the queue (time.monotonic), once it has."""
        return self._stream.admitted

    async def aclose(self) -> None:
        """End the request."""
        self.abort()

    def abort(self) -> None:
        """End the request."""
        self._stream.abort()

    def _take(self, update: Update) -> Piece:
        text, ids = self._read(update.tokens)
        if update.finish_reason is not None:
            text += self._text.flush()
        finish: Finish | None = "length" if update.finish_reason == "deadline" else update.finish_reason  # type: ignore[assignment]  # errors were raised
        if self._text.finished_by_stop:
            finish = "stop"
            self._stream.abort()
        self._ended = finish is not None
        draft: tuple[DraftPiece, ...] = ()
        if update.draft and not self._ended:
            draft = draft_pieces(self._llm.tokenizer, self._llm.config, update.draft, self._mode)
            if self._text.held:  # settled, but perhaps the beginning of a stop string
                draft = (DraftPiece(self._text.held, "draft"), *draft)
        return Piece(text, self._tokens, update.forwards, draft, finish, update.cached, tuple(ids))

    def _read(self, tokens: Sequence[int]) -> tuple[str, list[int]]:
        """The text that became certain and the tokens that came, up to the one that completes a stop string."""
        if not self._stop:
            self._tokens += len(tokens)
            ids = [token for token in tokens if token not in self._ends]
            return self._text.push(ids), ids
        text, ids = "", []
        for token in tokens:
            self._tokens += 1
            if token not in self._ends:
                ids.append(token)
                text += self._text.push([token])
            if self._text.finished_by_stop:
                break
        return text, ids


class Service:
    """Owns the engine's thread, but not the process that `RemoteLLM` has. `name` is the model's id on the wire."""

    def __init__(self, llm: LLM | RemoteLLM, name: str) -> None:
        self.llm, self.name = llm, name
        self.created = int(time.time())
        self.engine = AsyncEngine(llm.engine)
        if isinstance(llm, RemoteLLM):
            llm.engine.when_ended(self.engine.look)
        self.grammars = Grammars(llm.tokenizer, llm.config.eos_ids)

    @property
    def drafts(self) -> bool:
        """Can the checkpoint denoise? If not, only mode ar can run."""
        return self.llm.config.diffusion is not None

    @property
    def stopped(self) -> str | None:
        """Why no request will be answered any more, if so."""
        return None if self.engine.stopped is None else str(self.engine.stopped)

    @property
    def has_room(self) -> bool:
        """Would another request be taken?"""
        return self.llm.engine.room > 0

    def submit(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        eos: Sequence[int] | None = None,
        draft: bool = False,
        expected: Sequence[int] | None = None,
        constraint: Constraint | None = None,
        pace: float = 0.0,
    ) -> Answer:
        """Queue a request; raises what `Engine.request` does, QueueFullError and EngineStoppedError.

        One piece comes in each `pace` seconds at most, but where a stop string may end the text.
        """
        pace = 0.0 if params.stop else pace
        stream = self.engine.submit(ids, params, eos, draft=draft, expected=expected, constraint=constraint, pace=pace)
        ends = frozenset(() if params.ignore_eos else self.llm.config.eos_ids if eos is None else eos)
        return Answer(self.llm, stream, params.stop, ends, params.mode)

    async def token_odds(self, prompt: Sequence[int], answer: Sequence[int], top: int) -> list[TokenOdds]:
        """What the clean side thinks of an answer's tokens; requests under way wait for one reading of the text."""
        if not answer:
            return []
        return await self.engine.run(lambda: self.llm.token_odds([*prompt, *answer], len(prompt), top))

    async def close(self, *, drain: bool = True) -> None:
        """Refuse new requests, finish or fail those under way, and end the engine's thread."""
        await asyncio.to_thread(self.engine.close, drain=drain)
