"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from openmercury.errors import OpenMercuryError
from openmercury.server import errors
from openmercury.server.errors import refused
from openmercury.server.generation import Generation, Snapshots, begin
from openmercury.server.request import check_model, choices, sampling
from openmercury.server.schemas import ChatRequest, Message
from openmercury.server.stream import DONE, STREAMED, EventStream, event, while_connected
from openmercury.text import chat as template

router = APIRouter()


@router.post("/chat/completions", responses=STREAMED)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation; with `stream` as server-sent events."""
    service, settings = request.app.state.service, request.app.state.settings
    check_model(body.model, service, settings)
    _check_supported(body)
    n = choices(body, settings)
    most = body.max_completion_tokens or body.max_tokens or settings.max_tokens
    params = sampling(body, service, settings).model_copy(update={"max_tokens": most})
    messages = [flat(number, message) for number, message in enumerate(body.messages)]
    ids = await asyncio.to_thread(template.render, service.llm.tokenizer, messages)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    generation = begin(request, body, ids, params, n=n, kind=kind)
    if body.stream:
        events = _events(generation, body, settings.snapshot_seconds)
        return EventStream(events, lambda error: _failed(generation, error), settings.keep_alive_seconds)
    texts = await while_connected(request.receive, generation.texts())
    return JSONResponse(_whole(generation, body, texts))


def flat(number: int, message: Message) -> dict[str, str]:
    """A message as the chat template takes it; raises ApiError for what is no text."""
    where = f"messages.{number}"
    if message.tool_calls or message.role in ("tool", "function"):
        raise refused(where, "belongs to tools, which are not supported")
    if isinstance(message.content, list):
        for place, part in enumerate(message.content):
            if part.type not in ("text", "input_text") or part.text is None:
                raise refused(f"{where}.content.{place}", f"is of type {part.type}: this model reads text only")
        content = "".join(part.text or "" for part in message.content)
    else:
        content = message.content or ""
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


def _check_supported(body: ChatRequest) -> None:
    if body.tools or body.tool_choice not in (None, "none", "auto"):
        raise refused("tools", "are not supported: leave them out", "unsupported_parameter")
    if body.response_format is not None and body.response_format.get("type") != "text":
        raise refused("response_format", "is not supported but for text", "unsupported_parameter")
    if body.logprobs or body.top_logprobs:
        raise refused("logprobs", "are not supported: leave them out", "unsupported_parameter")


# --- what is sent ----------------------------------------------------------------------------------------------------


def _whole(generation: Generation, body: ChatRequest, texts: list[str]) -> dict[str, Any]:
    answers = [
        {
            "index": number,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": generation.finish[number],
        }
        for number, text in enumerate(texts)
    ]
    return {**generation.head, "choices": answers, "usage": generation.usage(), **_summary(body)}


def _summary(body: ChatRequest) -> dict[str, Any]:
    return {"reasoning_summary": {"content": None, "status": "unavailable"}} if body.reasoning_summary else {}


async def _events(generation: Generation, body: ChatRequest, seconds: float) -> AsyncGenerator[bytes]:
    n = len(generation.tokens)
    for number in range(n):
        yield event(_chunk(generation, number, {"role": "assistant", "content": ""}))
    views = [Snapshots(generation.stop, seconds) for _ in range(n)] if body.diffusing else []
    async for number, piece in generation.pieces():
        last = _summary(body) if piece.finish_reason is not None else {}
        if views:
            shown = views[number].take(piece)
            if shown is not None:
                delta, more = {"content": shown[0]}, {"diffusion_meta": shown[1], **last}
                yield event(_chunk(generation, number, delta, piece.finish_reason) | more)
            continue
        if piece.text:
            yield event(_chunk(generation, number, {"content": piece.text}))
        if piece.finish_reason is not None:
            yield event(_chunk(generation, number, {}, piece.finish_reason) | last)
    if body.include_usage:
        yield event({**generation.head, "choices": [], "usage": generation.usage()})
    yield DONE


def _chunk(generation: Generation, number: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**generation.head, "choices": [choice]}


def _failed(generation: Generation, error: OpenMercuryError) -> bytes:
    """Whatever was cut off by a fault ends with "length": it must not pass for whole."""
    return event(_chunk(generation, 0, {}, "length") | errors.of(error).body)
