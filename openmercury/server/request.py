"""From a request to what the engine is asked: the model's name, the decoder's parameters, the limits of the server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError

from openmercury.config import explain
from openmercury.engine.params import SamplingParams
from openmercury.server.errors import ApiError, complaint, refused
from openmercury.server.schemas import Sampled, TextPart
from openmercury.server.service import Service
from openmercury.server.settings import ServerSettings

T = TypeVar("T")

POLICY = ("threshold", "steps", "entropy_bound", "edit_below", "block_size")
REALTIME_BLOCK = 8
SHORT_BODY = 4096  # bytes; a prompt in it is rendered in less time than a thread waits for its turn


async def rendered(request: Request, render: Callable[..., T], *args: Any) -> T:
    """The result of work on a prompt: at once where that is short, in a thread where others would wait for it."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) <= SHORT_BODY:
        return render(*args)
    return await asyncio.to_thread(render, *args)


def check_model(asked: str, service: Service, settings: ServerSettings) -> None:
    """Raise ApiError 404 for a model that is not served."""
    if asked != service.name and asked not in settings.aliases:
        raise ApiError(404, f"model `{asked}` not found", code="model_not_found", param="model")


def text_of(content: str | list[TextPart] | None, where: str) -> str | None:
    """The content of a message as one text; raises ApiError for a part that is none, named from `where` on."""
    if not isinstance(content, list):
        return content
    for place, part in enumerate(content):
        if part.type not in ("text", "input_text") or part.text is None:
            raise refused(f"{where}.{place}", f"is of type {part.type}: this model reads text only")
    return "".join(part.text or "" for part in content)


def choices(body: Sampled, settings: ServerSettings) -> int:
    """How many answers are wanted; raises ApiError for more than allowed."""
    wanted = body.n or 1
    if wanted > settings.max_choices:
        raise refused("n", f"is {wanted} and this server gives at most {settings.max_choices}")
    return wanted


def sampling(body: Sampled, service: Service, settings: ServerSettings, **defaults: Any) -> SamplingParams:
    """The decoder's parameters. `defaults` are the endpoint's own; raises ApiError naming what does not go together."""
    named = {name: getattr(body, name, None) for name in SamplingParams.model_fields}
    given = {**defaults, **{name: value for name, value in named.items() if value is not None}}
    given |= _policy(body, given, service, settings)
    if body.stop is not None:
        given["stop"] = tuple(body.stop)
    if given.get("top_p") == 0:  # OpenAI's way to say greedy
        given |= {"top_p": 1.0, "top_k": 1}
    given["top_k"] = max(0, given.get("top_k", 0))
    given["deadline"] = min(given.get("deadline", settings.deadline), settings.deadline)
    given["seed"] = secrets.randbits(63) if body.seed is None else body.seed % 2**63
    try:
        return SamplingParams(**{"temperature": settings.temperature, "max_tokens": settings.max_tokens, **given})
    except ValidationError as error:
        raise complaint(explain(error, SamplingParams)) from None


def _policy(body: Sampled, given: dict[str, Any], service: Service, settings: ServerSettings) -> dict[str, Any]:
    """Mode and unmask policy: what the request names, else what its effort stands for, else the server's mode."""
    chosen: dict[str, Any] = {"mode": settings.mode}
    if "mode" in given:
        chosen = {"mode": given["mode"]}
    elif any(name in given for name in POLICY) or (body.diffusing and service.drafts):
        chosen = {"mode": "diffusion"}
    elif service.drafts:
        chosen |= settings.efforts.get(body.reasoning_effort or "medium", {})
    if body.realtime and chosen["mode"] == "diffusion" and "block_size" not in given:
        chosen["block_size"] = REALTIME_BLOCK
    return chosen
