"""The answers of one request while they are written: pieces as they come, what they cost, and snapshots to look at."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from openmercury.engine.constraint import Constraint
from openmercury.engine.params import SamplingParams
from openmercury.errors import OpenMercuryError
from openmercury.server import errors
from openmercury.server.schemas import Sampled
from openmercury.server.service import Answer, Finish, Piece, Service
from openmercury.server.stream import DONE, encoded, event

MASK = "░"
STAGES = ("queue", "prefill", "decode")


class Generation:
    """`n` answers to one prompt. `head` opens every object that is sent."""

    def __init__(
        self,
        service: Service,
        ids: Sequence[int],
        params: SamplingParams,
        *,
        n: int,
        head: dict[str, Any],
        constraints: Sequence[Constraint | None] | None = None,
        **more: Any,
    ) -> None:
        """Queue them, each under its own constraint; raises as `Service.submit`, to which `more` is passed on."""
        self.service, self.prompt, self.ids = service, ids, [list[int]() for _ in range(n)]
        self._opening = encoded(head).removesuffix("}")  # of every event
        self.head, self.prompt_tokens, self.params = head, len(ids), params
        self.begin, self.first_text = time.monotonic(), 0.0
        self._begun, self._ended = [0.0] * n, [0.0] * n  # when the first tokens of each came, and the last
        self.error: str | None = None  # what cut a stream off
        self.tokens, self.forwards, self.cached = [0] * n, [0] * n, 0
        self.finish: list[Finish | None] = [None] * n
        self._answers = list[Answer]()
        try:
            for number in range(n):
                each = params.model_copy(update={"seed": (params.seed + number) % 2**63})
                constraint = None if constraints is None else constraints[number]
                self._answers.append(service.submit(ids, each, constraint=constraint, **more))
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """End all that have not ended."""
        for answer in self._answers:
            answer.abort()

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """(index, piece) as they come; closing it aborts the answers."""
        try:
            async with aclosing(self._merged()) as merged:
                async for number, piece in merged:
                    self.tokens[number], self.forwards[number] = piece.tokens, piece.forwards
                    self.finish[number] = piece.finish_reason
                    self.cached = max(self.cached, piece.cached)
                    self.ids[number] += piece.ids
                    self._note(number, piece)
                    if piece.text and not self.first_text:
                        self.first_text = time.monotonic()
                    yield number, piece
        finally:
            self.abort()

    def _note(self, number: int, piece: Piece) -> None:
        now = time.monotonic()
        if piece.tokens and not self._begun[number]:
            self._begun[number] = now
        if piece.finish_reason is not None:
            self._ended[number] = now

    def stages(self, now: float) -> list[list[tuple[str, float, float]]]:
        """What each answer went through up to `now`: (name, from, to), moments of time.monotonic."""
        found = []
        for answer, first, end in zip(self._answers, self._begun, self._ended, strict=True):
            begins = [moment for moment in (self.begin, answer.admitted, first) if moment]
            found.append([*zip(STAGES, begins, [*begins[1:], end or now], strict=False)])
        return found

    async def texts(self) -> list[str]:
        """The whole text of each answer."""
        parts: list[list[str]] = [[] for _ in self.tokens]
        async with aclosing(self.pieces()) as pieces:
            async for number, piece in pieces:
                parts[number].append(piece.text)
        return list(map("".join, parts))

    def usage(self) -> dict[str, Any]:
        """OpenAI's nested shape and Mercury's flat one, with what only a diffusion decoder has to say."""
        tokens, forwards = sum(self.tokens), sum(self.forwards)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
            "reasoning_tokens": 0,
            "cached_input_tokens": self.cached,
            "completion_tokens_details": {"reasoning_tokens": 0},
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "forwards": forwards,
            "tokens_per_forward": round(tokens / max(1, forwards), 3),
        }

    def event(self, choice: dict[str, Any], **more: Any) -> bytes:
        """One event of a stream, with what belongs beside its choice."""
        beside = "," + encoded(more).removeprefix("{") if more else "}"
        return event(f'{self._opening},"choices":[{encoded(choice)}]{beside}')

    def ending(self, body: Sampled) -> list[bytes]:
        """The last events of a stream."""
        usage = event(encoded({**self.head, "choices": [], "usage": self.usage()}))
        return [usage, DONE] if body.include_usage else [DONE]

    def cut_off(self, choice: dict[str, Any], error: OpenMercuryError) -> bytes:
        """The last event behind a fault; `choice` ends with "length": what was cut off must not pass for whole."""
        told = errors.of(error)
        self.error = told.type
        return self.event(choice, **told.body)

    def whole(self, answers: Sequence[dict[str, Any]], **more: Any) -> Response:
        """The response that is no stream."""
        return JSONResponse({**self.head, "choices": answers, "usage": self.usage(), **more})

    def facts(self) -> dict[str, Any]:
        """What the log says of it."""
        first = round(self.first_text - self.begin, 4) if self.first_text else None
        return {
            "answer": self.head["id"],
            "mode": self.params.mode,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": sum(self.tokens),
            "forwards": sum(self.forwards),
            "first_text_seconds": first,
            "finish": self.finish,
            "error": self.error,
        }

    async def _merged(self) -> AsyncGenerator[tuple[int, Piece]]:
        if len(self._answers) == 1:
            async for piece in self._answers[0]:
                yield 0, piece
            return
        waiting = {asyncio.ensure_future(answer.next()): number for number, answer in enumerate(self._answers)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    number, piece = waiting.pop(task), task.result()
                    if piece.finish_reason is None:
                        waiting[asyncio.ensure_future(self._answers[number].next())] = number
                    yield number, piece
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


def begin(
    request: Request, body: Sampled, ids: Sequence[int], params: SamplingParams, *, n: int, kind: str, **more: Any
) -> Generation:
    """Queue the answers to a request and note them where the log and the meters look."""
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    head = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": body.model}
    watched = bool(body.diffusing or (body.realtime and body.stream))
    service, settings = request.app.state.service, request.app.state.settings
    pace = 0.0 if body.realtime else settings.snapshot_seconds if body.diffusing else settings.chunk_seconds
    generation = Generation(service, ids, params, n=n, head=head, draft=watched, pace=pace, **more)
    request.state.generation = generation
    return generation


class Snapshots:
    """How one answer looks after each forward, at most one every so many seconds, and the last."""

    def __init__(self, stop: Sequence[str], seconds: float) -> None:
        self._stop, self._seconds = stop, seconds
        self._sent, self._progress = float("-inf"), 0.0

    def take(self, piece: Piece, settled: str, content: str) -> tuple[str, dict[str, Any]] | None:
        """(content, diffusion_meta), or None where the last one is too young. `content` goes on where `settled` ends,
        with what `drafted` says; it ends where a stop string would end it."""
        final, now = piece.finish_reason is not None, time.monotonic()
        if not final and now - self._sent < self._seconds:
            return None
        self._sent = now
        ends = [end for stop in self._stop if (end := content.find(stop)) >= 0]
        content = content[: max(len(settled), min(ends, default=len(content)))]
        # A share of an unknown length would be a guess: this is the settled share of what is shown, never going back.
        self._progress = max(self._progress, min(0.99, len(settled) / max(1, len(content))))
        meta = {
            "diffusion_progress": 1.0 if final else round(self._progress, 4),
            "diffusion_content": True,
            "settled_characters": len(settled),
            "draft": [{"text": part.text, "state": part.state} for part in piece.draft],
            "tokens": piece.tokens,
            "forwards": piece.forwards,
        }
        return content, meta


def drafted(piece: Piece) -> str:
    """The draft as text; MASK stands for a masked position."""
    return "".join(MASK if part.state == "masked" else part.text for part in piece.draft)
