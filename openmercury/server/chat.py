"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from openmercury.engine.constraint import Constraint
from openmercury.errors import OpenMercuryError
from openmercury.server import errors
from openmercury.server.errors import refused
from openmercury.server.generation import Generation, Snapshots, begin, drafted
from openmercury.server.logprobs import chat_shape
from openmercury.server.request import check_model, choices, sampling
from openmercury.server.schemas import ChatRequest, Message
from openmercury.server.service import Service
from openmercury.server.stream import DONE, STREAMED, EventStream, event, while_connected
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
    ids, constraints = await asyncio.to_thread(_prepared, service, structured, body, n)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    generation = begin(request, body, ids, params, n=n, kind=kind, constraints=constraints)
    readers = [structured.reader() for _ in range(n)]
    if body.stream:
        events = _events(generation, readers, body, settings.snapshot_seconds)
        return EventStream(events, lambda error: _failed(generation, error), settings.keep_alive_seconds)
    texts = await while_connected(request.receive, generation.texts())
    return JSONResponse(await while_connected(request.receive, _whole(generation, readers, body, texts)))


def _prepared(
    service: Service, structured: Structured, body: ChatRequest, n: int
) -> tuple[list[int], list[Constraint | None]]:
    """Prompt and constraints, which may take as long as a large prompt or schema does."""
    messages = structured.prompt([flat(number, message) for number, message in enumerate(body.messages)])
    ids = template.render(service.llm.tokenizer, messages, tools=structured.tools)
    return ids, [structured.constraint() for _ in range(n)]


def flat(number: int, message: Message) -> dict[str, Any]:
    """A message as the chat template takes it; raises ApiError for what is no text."""
    content = message.content
    if isinstance(content, list):
        for place, part in enumerate(content):
            if part.type not in ("text", "input_text") or part.text is None:
                where = f"messages.{number}.content.{place}"
                raise refused(where, f"is of type {part.type}: this model reads text only")
        content = "".join(part.text or "" for part in content)
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    called = {"tool_calls": message.tool_calls} if message.tool_calls else {}
    answered = {} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id}
    return {"role": role, "content": content if called else content or "", **called, **answered}


# --- what is sent ----------------------------------------------------------------------------------------------------


async def _whole(generation: Generation, readers: list[Reader], body: ChatRequest, texts: list[str]) -> dict[str, Any]:
    answers = []
    for number, (reader, text) in enumerate(zip(readers, texts, strict=True)):
        reader.push(text)
        _, finish = await asyncio.to_thread(reader.end, generation.finish[number] or "length")
        odds = await _odds(generation, number, body, text)
        answers.append({"index": number, "message": reader.message, "logprobs": odds, "finish_reason": finish})
    return {**generation.head, "choices": answers, "usage": generation.usage(), **_summary(body)}


async def _odds(generation: Generation, number: int, body: ChatRequest, text: str) -> dict[str, Any] | None:
    return await chat_shape(generation, number, text, body.top_logprobs or 0) if body.logprobs else None


def _summary(body: ChatRequest) -> dict[str, Any]:
    return {"reasoning_summary": {"content": None, "status": "unavailable"}} if body.reasoning_summary else {}


async def _events(
    generation: Generation, readers: list[Reader], body: ChatRequest, seconds: float
) -> AsyncGenerator[bytes]:
    for number in range(len(readers)):
        yield event(_chunk(generation, number, {"role": "assistant", "content": ""}))
    views, texts = [Snapshots(generation.stop, seconds) for _ in readers], [""] * len(readers)
    async for number, piece in generation.pieces():
        reader = readers[number]
        deltas, finish, odds = reader.push(piece.text), None, None
        texts[number] += piece.text
        if piece.finish_reason is not None:
            last, finish = await asyncio.to_thread(reader.end, piece.finish_reason)
            deltas += last
            odds = await _odds(generation, number, body, texts[number])
        shown = None
        if body.diffusing:
            deltas = [delta for delta in deltas if "content" not in delta]
            shown = views[number].take(piece, reader.content, reader.snapshot(drafted(piece)))
        for delta in deltas:
            yield event(_chunk(generation, number, delta))
        end = _summary(body) if finish is not None else {}
        if shown is not None:
            chunk = _chunk(generation, number, {"content": shown[0]}, finish, odds)
            yield event(chunk | {"diffusion_meta": shown[1]} | end)
        elif finish is not None:
            yield event(_chunk(generation, number, {}, finish, odds) | end)
    if body.include_usage:
        yield event({**generation.head, "choices": [], "usage": generation.usage()})
    yield DONE


def _chunk(
    generation: Generation, number: int, delta: dict[str, Any], finish: str | None = None, odds: Any = None
) -> dict[str, Any]:
    choice = {"index": number, "delta": delta, "logprobs": odds, "finish_reason": finish}
    return {**generation.head, "choices": [choice]}


def _failed(generation: Generation, error: OpenMercuryError) -> bytes:
    """Whatever was cut off by a fault ends with "length": it must not pass for whole."""
    return event(_chunk(generation, 0, {}, "length") | errors.of(error).body)
