"""The FastAPI application: routers, errors, limits, and what the server says about itself."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI

import openmercury
from openmercury.server import chat, completions, errors, models
from openmercury.server.service import Service
from openmercury.server.settings import ServerSettings

# Each family of endpoints is a router of its own file; all are served under /v1, and under /v1/v1 because Mercury's
# client adds /v1 to a base URL that may have it already.
ROUTERS: tuple[APIRouter, ...] = (models.router, chat.router, completions.router)


def create_app(service: Service, settings: ServerSettings) -> FastAPI:
    """The application; it owns `service` and closes it when it is shut down."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close(drain=False)  # the web server has drained already

    app = FastAPI(
        title="OpenMercury",
        version=openmercury.__version__,
        description="OpenAI's and Mercury's API over a diffusion language model for code.",
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service, app.state.settings = service, settings
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router, prefix="/v1")
        app.include_router(router, prefix="/v1/v1", include_in_schema=False)
    app.include_router(status)
    return app


status = APIRouter()


@status.get("/health")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}
