"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from openmercury.engine.constraint import Constraint
from openmercury.server.errors import refused
from openmercury.server.generation import Generation, Snapshots, begin, drafted
from openmercury.server.logprobs import chat_shape
from openmercury.server.request import check_model, choices, rendered, sampling, text_of
from openmercury.server.schemas import ChatRequest, Message
from openmercury.server.service import Service
from openmercury.server.stream import STREAMED, EventStream, while_connected
from openmercury.server.structured import Reader, Structured, plan
from openmercury.text import chat as template

router = APIRouter()


@router.post("/chat/completions", responses=STREAMED)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation; with `stream` as server-sent events."""
    service, settings = request.app.state.service, request.app.state.settings
    check_model(body.model, service, settings)
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs", "goes with logprobs: true only")
    n = choices(body, settings)
    most = body.max_completion_tokens or body.max_tokens or settings.max_tokens
    params = sampling(body, service, settings).model_copy(update={"max_tokens": most})
    structured = plan(body, service.grammars, stops=bool(body.stop))
    ids = await rendered(request, _ids, service, structured, body)
    constraints = [None] * n if structured.kind is None else await asyncio.to_thread(_constraints, structured, n)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    generation = begin(request, body, ids, params, n=n, kind=kind, constraints=constraints)
    readers = [structured.reader() for _ in range(n)]
    if body.stream:
        events = _events(generation, readers, body, settings.snapshot_seconds)
        cut = _choice(0, {}, "length")
        return EventStream(events, lambda error: generation.cut_off(cut, error), settings.keep_alive_seconds)
    texts = await while_connected(request.receive, generation.texts())
    return await while_connected(request.receive, _whole(generation, readers, body, texts))


def _ids(service: Service, structured: Structured, body: ChatRequest) -> list[int]:
    messages = structured.prompt([flat(number, message) for number, message in enumerate(body.messages)])
    return template.render(service.llm.tokenizer, messages, tools=structured.tools)


def _constraints(structured: Structured, n: int) -> list[Constraint | None]:
    return [structured.constraint() for _ in range(n)]


def flat(number: int, message: Message) -> dict[str, Any]:
    """A message as the chat template takes it; raises ApiError for what is no text."""
    content = text_of(message.content, f"messages.{number}.content")
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    called = {"tool_calls": message.tool_calls} if message.tool_calls else {}
    answered = {} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id}
    return {"role": role, "content": content if called else content or "", **called, **answered}


# --- what is sent ----------------------------------------------------------------------------------------------------


async def _whole(generation: Generation, readers: list[Reader], body: ChatRequest, texts: list[str]) -> Response:
    answers = []
    for number, (reader, text) in enumerate(zip(readers, texts, strict=True)):
        reader.push(text)
        _, finish = await _end(reader, generation.finish[number] or "length")
        odds = await _odds(generation, number, body, text)
        answers.append({"index": number, "message": reader.message, "logprobs": odds, "finish_reason": finish})
    return generation.whole(answers, **_summary(body))


async def _end(reader: Reader, finish: str) -> tuple[list[dict[str, Any]], str]:
    return await asyncio.to_thread(reader.end, finish) if reader.reads_again else reader.end(finish)


async def _odds(generation: Generation, number: int, body: ChatRequest, text: str) -> dict[str, Any] | None:
    return await chat_shape(generation, number, text, body.top_logprobs or 0) if body.logprobs else None


def _summary(body: ChatRequest) -> dict[str, Any]:
    return {"reasoning_summary": {"content": None, "status": "unavailable"}} if body.reasoning_summary else {}


async def _events(
    generation: Generation, readers: list[Reader], body: ChatRequest, seconds: float
) -> AsyncGenerator[bytes]:
    for number in range(len(readers)):
        yield generation.event(_choice(number, {"role": "assistant", "content": ""}))
    views, texts = [Snapshots(generation.params.stop, seconds) for _ in readers], [""] * len(readers)
    async for number, piece in generation.pieces():
        reader = readers[number]
        deltas, finish, odds = reader.push(piece.text), None, None
        texts[number] += piece.text
        if piece.finish_reason is not None:
            last, finish = await _end(reader, piece.finish_reason)
            deltas += last
            odds = await _odds(generation, number, body, texts[number])
        shown = None
        if body.diffusing:
            deltas = [delta for delta in deltas if "content" not in delta]
            shown = views[number].take(piece, reader.content, reader.snapshot(drafted(piece)))
        for delta in deltas:
            yield generation.event(_choice(number, delta))
        end = _summary(body) if finish is not None else {}
        if shown is not None:
            choice = _choice(number, {"content": shown[0]}, finish, odds)
            yield generation.event(choice, diffusion_meta=shown[1], **end)
        elif finish is not None:
            yield generation.event(_choice(number, {}, finish, odds), **end)
    for ended in generation.ending(body):
        yield ended


def _choice(number: int, delta: dict[str, Any], finish: str | None = None, odds: Any = None) -> dict[str, Any]:
    return {"index": number, "delta": delta, "logprobs": odds, "finish_reason": finish}
