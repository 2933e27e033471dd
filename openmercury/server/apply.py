"""POST /v1/apply/completions: a snippet merged into a file."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from openmercury.engine.params import SamplingParams
from openmercury.server.edit import chunk, expect, failed, one_message, whole
from openmercury.server.generation import begin
from openmercury.server.request import check_model, choices, rendered, sampling
from openmercury.server.schemas import Message, Sampled
from openmercury.server.service import Finish, Service
from openmercury.server.stream import EventStream, while_connected
from openmercury.text import edit

router = APIRouter()

DEFAULTS = {"max_tokens": 8192, "temperature": 0.0, "presence_penalty": 0.0}


class ApplyRequest(Sampled):
    """One user message with tags."""

    messages: Annotated[list[Message], Field(min_length=1)]


@router.post("/apply/completions")
async def apply_completions(request: Request, body: ApplyRequest) -> Response:
    """Merge an update into a file; the content is the whole merged file."""
    service, settings = request.app.state.service, request.app.state.settings
    check_model(body.model, service, settings)
    message, n = one_message(body), choices(body, settings)
    params = sampling(body, service, settings, **DEFAULTS)
    merge = edit.parse_merge(message)
    marks = edit.merge_marks(merge)
    params = params.model_copy(update={"stop": (*params.stop, f"\n{marks}")})
    ids, expected = await rendered(request, _prompt, service, merge, params)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    generation = begin(request, body, ids, params, n=n, kind=kind, expected=expected)
    if body.stream:

        async def events() -> AsyncGenerator[bytes]:
            files = [Merged(merge) for _ in range(n)]
            for number in range(n):
                yield chunk(generation, number, {"role": "assistant", "content": ""})
            async for number, piece in generation.pieces():
                text = files[number].take(piece.text, piece.finish_reason)
                if text or piece.finish_reason is not None:
                    yield chunk(generation, number, {"content": text}, piece.finish_reason)
            for last in generation.ending(body):
                yield last

        return EventStream(events(), lambda error: failed(generation, error), settings.keep_alive_seconds)
    texts = await while_connected(request.receive, generation.texts())
    return whole(generation, [Merged(merge).take(*each) for each in zip(texts, generation.finish, strict=True)])


class Merged:
    """A merged file on its way out: it ends as the original does, and has the client's line ends."""

    def __init__(self, merge: edit.Merge) -> None:
        original = merge.original
        self._end, self._newline, self._held = original[len(original.rstrip("\n")) :], merge.newline, ""

    def take(self, text: str, finish: Finish | None) -> str:
        """What is certain now that `text` has come; line breaks at the end are so when more text or the end comes."""
        text = self._held + text
        kept = text.rstrip("\n")
        self._held = text[len(kept) :]
        return (kept + self._end if finish == "stop" else kept).replace("\n", self._newline)


def _prompt(service: Service, merge: edit.Merge, params: SamplingParams) -> tuple[list[int], list[int] | None]:
    """The prompt up to where the code block of the answer begins, and what is expected: the file as it is."""
    tokenizer = service.llm.tokenizer
    answer = f"{merge.original.rstrip(chr(10))}\n{edit.merge_marks(merge)}"
    return edit.merge_ids(tokenizer, merge), expect(tokenizer, answer, service.llm.config.eos_ids, params)
