"""What happens around every request: who asks, may they, how large is it, what became of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import ExitStack
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openmercury.log import get_logger
from openmercury.server.auth import Door
from openmercury.server.connection import ABORT
from openmercury.server.errors import ApiError, respond
from openmercury.server.generation import Generation
from openmercury.server.limits import Client, Room
from openmercury.server.metrics import Meters
from openmercury.server.settings import ServerSettings
from openmercury.server.stream import ClientGone
from openmercury.server.telemetry import Telemetry

UNTRACED = ("/health", "/ready", "/metrics")  # asked every few seconds by machines
GONE = 499  # as nginx logs a client that did not wait
CLOSE = {"connection": "close"}  # what else the client sends is of no use
SAFE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
}


class Guard:
    """ASGI middleware. `/v1`, `/feedback` and `/metrics` are for admitted clients; the page and the probes for all."""

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, door: Door, room: Room, meters: Meters, traces: Telemetry | None
    ) -> None:
        self._app, self._settings = app, settings
        self._door, self._room, self._meters, self._traces = door, room, meters, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            visit = _Visit(self._settings, self._door, self._room, scope, send)
            await visit.run(self._app, receive, self._meters, self._traces)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)


class _Visit:
    """One request on its way through."""

    def __init__(self, settings: ServerSettings, door: Door, room: Room, scope: Scope, send: Send) -> None:
        self._settings, self._door, self._room, self._scope, self._send_on = settings, door, room, scope, send
        self._headers = Headers(scope=scope)
        self._client: Client | None = None
        self._id, self._status = f"req_{uuid.uuid4().hex}", 0
        self._state: dict[str, Any] = scope.setdefault("state", {})

    async def run(self, app: ASGIApp, receive: Receive, meters: Meters, traces: Telemetry | None) -> None:
        begin = time.monotonic()
        try:
            with ExitStack() as inside:
                self._enter(inside)
                await app(self._scope, await self._whole_body(receive), self._send)
        except ApiError as error:
            await self._fail(error)
        except (ClientGone, TimeoutError):
            self._status = self._status or GONE
            if ABORT in self._state:  # closing it would wait until the client has read what is on its way
                self._state[ABORT]()
        except Exception:  # a bug of ours must neither end the connection without a word nor show its trace
            get_logger().exception("%s %s failed", self._scope["method"], self._scope["path"])
            await self._fail(ApiError(500, "internal error: the server's log has the details", "server_error"))
        finally:
            self._record(begin, meters, traces)

    def _enter(self, inside: ExitStack) -> None:
        path = self._scope["path"]
        if not path.startswith(("/v1/", "/metrics")):  # editors send no key with what they report to /feedback
            return
        self._client = self._door.admit(self._headers.get("authorization", ""), self._headers.get("host", ""))
        if self._scope["method"] == "POST":
            self._client.start_request()
            inside.enter_context(self._room.entered(self._client))

    async def _whole_body(self, receive: Receive) -> Receive:
        """Read the body within its limits; what comes behind it, such as the client's leaving, is passed on."""
        most, parts, size, more = self._settings.body_bytes, list[bytes](), 0, True
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
                    if size > most:
                        raise ApiError(413, f"the body is larger than {most} bytes: send less", headers=CLOSE)
        except TimeoutError:
            told = f"the body did not come within {self._settings.body_seconds:g} s: send it again"
            raise ApiError(408, told, headers=CLOSE) from None
        pending: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        return replay

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            told = {**SAFE, "x-request-id": self._id, **({} if self._client is None else self._client.headers())}
            for name, value in told.items():
                headers.setdefault(name, value)
        async with asyncio.timeout(self._settings.send_seconds):
            await self._send_on(message)

    async def _fail(self, error: ApiError) -> None:
        if not self._status:
            await respond(error)(self._scope, _nothing, self._send)

    def _record(self, begin: float, meters: Meters, traces: Telemetry | None) -> None:
        seconds = time.monotonic() - begin
        generation: Generation | None = self._state.get("generation")
        if generation is not None:
            generation.abort()  # the client may have gone before anything read it
        path = getattr(self._scope.get("route"), "path", "other")
        if self._scope["path"].startswith("/v1/") and path.startswith("/") and not path.startswith("/v1/"):
            path = f"/v1{path}"  # a router's own path is without its prefix
        meters.request(path, self._status, seconds, generation)
        facts: dict[str, Any] = {
            "id": self._id,
            "client": None if self._client is None else self._client.name,
            "method": self._scope["method"],
            "path": path,
            "status": self._status,
            "seconds": round(seconds, 4),
        }
        if generation is not None:
            facts |= generation.facts()
            if self._client is not None:
                self._client.charge(generation.prompt_tokens + sum(generation.tokens))
        if traces is not None and self._scope["path"] not in UNTRACED:
            facts["trace"] = traces.request(self._headers, begin, facts, generation)
        get_logger().info("request", extra={"facts": facts})


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
