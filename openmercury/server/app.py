"""The FastAPI application: routers, errors, limits, and what the server says about itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
from collections.abc import AsyncIterator

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

import openmercury
from openmercury.engine.expected import COPYING_MODES
from openmercury.engine.params import SamplingParams
from openmercury.llm import LLM
from openmercury.server import apply, chat, completions, decisions, edit, errors, feedback, models, playground
from openmercury.server.auth import Door
from openmercury.server.connection import impatient
from openmercury.server.guard import Guard
from openmercury.server.limits import Room
from openmercury.server.metrics import Meters
from openmercury.server.remote import RemoteLLM
from openmercury.server.service import Service
from openmercury.server.settings import ServerSettings
from openmercury.server.telemetry import Telemetry

status = APIRouter()

CHATS = 8  # at once, for which CUDA graphs are captured before the first comes

# Each family of endpoints is a router of its own file; all are served under /v1, and under /v1/v1 because Mercury's
# client adds /v1 to a base URL that may have it already.
API: tuple[APIRouter, ...] = (
    models.router, chat.router, completions.router, edit.router, apply.router, decisions.router,
)  # fmt: skip
ROOT: tuple[APIRouter, ...] = (status, feedback.router, playground.router)


def create_app(service: Service, settings: ServerSettings, traces: Telemetry | None = None) -> FastAPI:
    """The application; it owns `service` and `traces` and closes them when it is shut down.

    Raises ConfigError for a public address without keys, and for a key file that is missing or broken.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close(drain=False)  # the web server has drained already
        if traces is not None:
            await asyncio.to_thread(traces.close)

    app = FastAPI(
        title="OpenMercury",
        version=openmercury.__version__,
        description="OpenAI's and Mercury's API over a diffusion language model for code.",
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        responses={"default": {"model": errors.ErrorAnswer, "description": "An error, in OpenAI's shape."}},
    )
    room = Room(settings)
    meters = Meters(service, room)
    app.state.service, app.state.settings, app.state.meters = service, settings, meters
    errors.install(app)
    for router in API:
        app.include_router(router, prefix="/v1")
        app.include_router(router, prefix="/v1/v1", include_in_schema=False)
    for router in ROOT:
        app.include_router(router)
    app.add_middleware(Guard, settings=settings, door=Door(settings), room=room, meters=meters, traces=traces)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


def warm_up(llm: LLM | RemoteLLM, settings: ServerSettings) -> None:
    """Have ready on a GPU what some chats at once want, and what one editor does: a fill, an edit and a merge."""
    plain = SamplingParams(mode=settings.mode, temperature=settings.temperature)
    llm.warm_up(CHATS, plain)
    llm.warm_up(1, plain.model_copy(update=completions.FIM_DEFAULTS))
    for defaults in (edit.DEFAULTS, apply.DEFAULTS):
        llm.warm_up(1, plain.model_copy(update=defaults), expected=settings.mode in COPYING_MODES)


def settle() -> None:
    """Take what has been loaded out of the garbage collector's rounds, each of which would go through all of PyTorch
    while requests wait."""
    gc.collect()
    gc.freeze()


def web_server(app: FastAPI, settings: ServerSettings) -> uvicorn.Server:
    """What speaks HTTP for it. On SIGTERM it takes no more connections and lets answers be finished, for a while."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=impatient(settings.body_seconds),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
        )
    )


@status.get("/health")
async def health(request: Request) -> Response:
    """200 while the engine lives; a supervisor starts the server anew otherwise."""
    return _state("ok", request.app.state.service.stopped)


@status.get("/ready")
async def ready(request: Request) -> Response:
    """200 while another request would be taken."""
    service: Service = request.app.state.service
    return _state("ready", service.stopped or (None if service.has_room else "the queue is full"))


@status.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counts and times, for Prometheus."""
    return Response(request.app.state.meters.text(), media_type=CONTENT_TYPE_LATEST)


def _state(word: str, why: str | None) -> JSONResponse:
    return JSONResponse({"status": word}) if why is None else JSONResponse({"status": why}, 503)
