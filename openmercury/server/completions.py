"""POST /v1/completions and /v1/fim/completions: text to continue, or the gap between two texts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from openmercury.errors import EmptyPromptError
from openmercury.server.errors import refused
from openmercury.server.generation import Generation, Snapshots, begin, drafted
from openmercury.server.logprobs import completion_shape
from openmercury.server.request import check_model, choices, rendered, sampling
from openmercury.server.schemas import CompletionRequest, FimRequest, Sampled
from openmercury.server.stream import STREAMED, EventStream, while_connected
from openmercury.text import fim
from openmercury.text.tokenizer import Tokenizer

router = APIRouter()

MAX_TOKENS = 512
FIM_DEFAULTS = {"max_tokens": MAX_TOKENS, "stop": ("\n\n", "\n \n"), "presence_penalty": 1.5}
NOTHING = "<|endoftext|>"  # what Continue sends for an empty suffix


@router.post("/completions", responses=STREAMED)
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue a text, or fill the gap before `suffix`."""
    if body.echo:
        raise refused("echo", "is not supported: leave it out", "unsupported_parameter")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise refused("best_of", "is not supported but as n: leave it out", "unsupported_parameter")
    return await _answer(request, body, body.prompt, body.suffix, {"max_tokens": MAX_TOKENS})


@router.post("/fim/completions", responses=STREAMED)
async def fim_completions(request: Request, body: FimRequest) -> Response:
    """Fill the gap between `prompt` and `suffix`; ends at an empty line unless `stop` says otherwise."""
    return await _answer(request, body, body.prompt, body.suffix or "", FIM_DEFAULTS)


async def _answer(
    request: Request, body: Sampled, prompt: Any, suffix: str | None, defaults: dict[str, Any]
) -> Response:
    service, settings = request.app.state.service, request.app.state.settings
    check_model(body.model, service, settings)
    params = sampling(body, service, settings, **defaults)
    suffix = "" if suffix == NOTHING else suffix
    if suffix is not None:
        params = params.model_copy(update={"stop": (*params.stop, *fim.suffix_stops(suffix))})
    tokenizer = service.llm.tokenizer
    ids = await rendered(request, _ids, tokenizer, _one(prompt), suffix)
    ends = None if suffix is None else (*service.llm.config.eos_ids, *fim.stop_ids(tokenizer))
    generation = begin(request, body, ids, params, n=choices(body, settings), kind="text_completion", eos=ends)
    if body.stream:
        events = _events(generation, body, settings.snapshot_seconds)
        cut = _choice(0, "", "length")
        return EventStream(events, lambda error: generation.cut_off(cut, error), settings.keep_alive_seconds)
    texts = await while_connected(request.receive, generation.texts())
    odds = [await _odds(generation, number, body, text) for number, text in enumerate(texts)]
    answers = [_choice(number, text, generation.finish[number], odds[number]) for number, text in enumerate(texts)]
    return generation.whole(answers)


def _one(prompt: Any) -> str | list[int]:
    """The one prompt; OpenAI's lists of prompts are taken when they hold one."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise refused("prompt", f"holds {len(prompt)} prompts: send one a request")
        prompt = prompt[0]
    return prompt  # type: ignore[no-any-return]  # the schema has checked it


def _ids(tokenizer: Tokenizer, prompt: str | list[int], suffix: str | None) -> list[int]:
    if suffix is not None:
        if not isinstance(prompt, str):
            raise refused("prompt", "is a list of token ids, which excludes suffix: send text")
        return fim.render_fill(tokenizer, prompt, suffix)
    if not prompt:
        raise EmptyPromptError("the prompt is empty: give some text to continue")
    return tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else prompt


# --- what is sent ----------------------------------------------------------------------------------------------------


async def _events(generation: Generation, body: Sampled, seconds: float) -> AsyncGenerator[bytes]:
    views, texts = (
        [Snapshots(generation.params.stop, seconds) for _ in generation.tokens],
        [""] * len(generation.tokens),
    )
    async for number, piece in generation.pieces():
        texts[number] += piece.text
        ended = piece.finish_reason is not None
        odds = await _odds(generation, number, body, texts[number]) if ended else None
        if body.diffusing:
            shown = views[number].take(piece, texts[number], texts[number] + drafted(piece))
            if shown is not None:
                yield generation.event(_choice(number, shown[0], piece.finish_reason, odds), diffusion_meta=shown[1])
        elif piece.text or ended:
            yield generation.event(_choice(number, piece.text, piece.finish_reason, odds))
    for last in generation.ending(body):
        yield last


async def _odds(generation: Generation, number: int, body: Sampled, text: str) -> dict[str, Any] | None:
    top = getattr(body, "logprobs", None)
    return None if top is None else await completion_shape(generation, number, text, top)


def _choice(number: int, text: str, finish: str | None, odds: Any = None) -> dict[str, Any]:
    return {"index": number, "text": text, "logprobs": odds, "finish_reason": finish}
