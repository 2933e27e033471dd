"""The lists of models: the checkpoint under its own name, and under the names that clients know."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from openmercury.server.request import check_model
from openmercury.server.service import Service
from openmercury.server.settings import ServerSettings

router = APIRouter()

ENDPOINTS = {"chat": "chat.completions", "fim": "fim.completions", "edit": "edit.completions"}
SAMPLING = (
    "temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop",
    "max_tokens", "max_completion_tokens", "n", "stream", "diffusing", "realtime", "reasoning_effort", "mode",
    "threshold", "steps", "entropy_bound", "edit_below", "block_size",
)  # fmt: skip


@router.get("/models")
@router.get("/chat/completions/models")
@router.get("/fim/completions/models")
@router.get("/edit/completions/models")
async def models(request: Request) -> dict[str, Any]:
    """All names of the one model; every endpoint serves it."""
    service, settings = request.app.state.service, request.app.state.settings
    names = dict.fromkeys((service.name, *settings.aliases))
    return {"object": "list", "data": [describe(name, service, settings) for name in names]}


@router.get("/models/{model:path}")
async def model(request: Request, model: str) -> dict[str, Any]:
    """One of them."""
    service, settings = request.app.state.service, request.app.state.settings
    check_model(model, service, settings)
    return describe(model, service, settings)


def describe(name: str, service: Service, settings: ServerSettings) -> dict[str, Any]:
    """A model as Mercury lists it, with the keys that OpenAI's clients want."""
    context = service.llm.config.max_context
    return {
        "id": name,
        "object": "model",
        "owned_by": "openmercury",
        "root": service.name,  # as vLLM lists aliases: what the id stands for
        "name": name,
        "created": service.created,
        "description": f"{service.name}, a diffusion language model for code",
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "context_length": context,
        "max_output_length": min(settings.max_tokens, context),
        "pricing": dict.fromkeys(("prompt", "completion", "input_cache_reads", "input_cache_writes"), "0"),
        "supported_sampling_parameters": list(SAMPLING),
        "supported_features": features(service),
        "supported_endpoints": [*ENDPOINTS.values(), "completions", "apply.completions", "decisions"],
        "openrouter": {"slug": name},
        "datacenters": [],
    }


def features(service: Service) -> list[str]:
    """What the checkpoint's chat template can be asked for."""
    template = service.llm.tokenizer.chat_template
    if template is None:
        return []
    return [*(["tools"] if "tools" in template else []), "json_mode", "structured_outputs"]
