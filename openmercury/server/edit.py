"""POST /v1/edit/completions: the code to edit as it will be after the next edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from openmercury.engine.expected import COPYING_MODES
from openmercury.engine.params import SamplingParams
from openmercury.errors import OpenMercuryError
from openmercury.server.errors import refused
from openmercury.server.generation import Generation, begin
from openmercury.server.request import check_model, choices, rendered, sampling, text_of
from openmercury.server.schemas import Message, Sampled
from openmercury.server.service import Finish, Service
from openmercury.server.stream import EventStream, while_connected
from openmercury.text import chat, edit
from openmercury.text.tokenizer import Tokenizer

router = APIRouter()

DEFAULTS = {"max_tokens": 1024, "temperature": 0.2, "presence_penalty": 1.0}
PROMPT_TOKENS = 8192  # what lies farther from the region helps little and takes seconds to read on a CPU


class EditRequest(Sampled):
    """One user message with tags. A system message, which older clients send, is dropped: ours takes its place."""

    messages: Annotated[list[Message], Field(min_length=1)]


@router.post("/edit/completions")
async def edit_completions(request: Request, body: EditRequest) -> Response:
    """Predict the next edit; the content is a code block for the code to edit, or None."""
    service, settings = request.app.state.service, request.app.state.settings
    check_model(body.model, service, settings)
    message, n = one_message(body), choices(body, settings)
    params = sampling(body, service, settings, **DEFAULTS)
    asked, ids, expected = await rendered(request, _prompt, service, message, params)
    kind = "chat.completion.chunk" if body.stream else "edit.completion"
    generation = begin(request, body, ids, params, n=n, kind=kind, expected=expected)

    def contents(texts: Sequence[str]) -> list[str]:
        return [content(text, finish, asked) for text, finish in zip(texts, generation.finish, strict=True)]

    if body.stream:

        async def events() -> AsyncGenerator[bytes]:
            # What is suggested is known when the region is whole: it may be as it was, or have lost its indentation.
            for number, text in enumerate(contents(await generation.texts())):
                yield chunk(generation, number, {"role": "assistant", "content": text}, generation.finish[number])
            for last in generation.ending(body):
                yield last

        return EventStream(events(), lambda error: failed(generation, error), settings.keep_alive_seconds)
    return whole(generation, contents(await while_connected(request.receive, generation.texts())))


def content(text: str, finish: Finish | None, asked: edit.NextEdit) -> str:
    """What is sent for an answer. One that was cut short suggests nothing: it would delete the rest of the region."""
    return edit.render_edit(edit.read_edit(text, asked) if finish == "stop" else None)


def _prompt(
    service: Service, message: str, params: SamplingParams
) -> tuple[edit.NextEdit, list[int], list[int] | None]:
    """The edit as far as it fits, its prompt, and what is expected: the region as it is."""
    tokenizer, config = service.llm.tokenizer, service.llm.config
    asked = edit.parse_next_edit(message)
    system, user = edit.edit_messages(asked)
    around = len(chat.render(tokenizer, [system, {**user, "content": ""}]))
    room = config.max_context - around - min(params.max_tokens, config.max_context // 4)
    asked = edit.fit(asked, lambda text: len(tokenizer.encode(text)), min(room, PROMPT_TOKENS))
    ids = chat.render(tokenizer, edit.edit_messages(asked))
    return asked, ids, expect(tokenizer, edit.fenced(asked.region), config.eos_ids, params)


# --- shared with apply -----------------------------------------------------------------------------------------------


def one_message(body: Any) -> str:
    """The text of the one user message; raises ApiError."""
    if body.diffusing:
        raise refused("diffusing", "is not supported here: leave it out", "unsupported_parameter")
    messages = [message for message in body.messages if message.role not in ("system", "developer")]
    if len(messages) != 1 or messages[0].role != "user":
        raise refused("messages", "must be exactly one user message here")
    return text_of(messages[0].content, "messages.0.content") or ""


def expect(tokenizer: Tokenizer, answer: str, eos: Sequence[int], params: SamplingParams) -> list[int] | None:
    """The tokens of an answer that may come; None where the mode makes no use of them."""
    return [*tokenizer.encode(answer), eos[0]] if eos and params.mode in COPYING_MODES else None


def whole(generation: Generation, contents: Sequence[str]) -> Response:
    """The response that is no stream, of the contents of its messages."""
    answers = [
        {
            "index": number,
            "message": {"role": "assistant", "content": text},
            "finish_reason": generation.finish[number],
        }
        for number, text in enumerate(contents)
    ]
    return generation.whole(answers)


def chunk(generation: Generation, number: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
    """One event of a stream."""
    return generation.event({"index": number, "delta": delta, "finish_reason": finish})


def failed(generation: Generation, error: OpenMercuryError) -> bytes:
    """The last event of a stream behind a fault."""
    return generation.cut_off({"index": 0, "delta": {}, "finish_reason": "length"}, error)
