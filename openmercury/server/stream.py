"""Server-sent events, and work that ends as soon as nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openmercury.errors import OpenMercuryError

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}  # beside JSON, in the docs


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


encoded: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def event(data: str) -> bytes:
    """One server-sent event of a JSON text."""
    return f"data: {data}\n\n".encode()


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; when the client goes, it is cancelled and ClientGone raised."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        with contextlib.suppress(BaseException):
            await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends events as they come, and comments while none do.

    Where `events` raises an error of ours, `failed` gives the last event: a whole chunk with an `error` beside its
    choices, because OpenAI's clients raise for it and Mercury's take a bare error for a chunk. The connection is then
    dropped, so that nobody takes the answer for whole.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes], failed: Callable[[OpenMercuryError], bytes], keep_alive: float
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._failed, self._keep_alive = events, failed, keep_alive
        self._quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        comments = asyncio.ensure_future(self._comment(send))
        try:
            with contextlib.suppress(ClientGone):
                await while_connected(receive, self._send(send))
        finally:
            comments.cancel()
            await asyncio.gather(comments, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with contextlib.aclosing(self._events):
                async for data in self._events:
                    self._quiet = False
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except OpenMercuryError as error:
            await send({"type": "http.response.body", "body": self._failed(error), "more_body": True})
            return  # without the end of the body: the server closes the connection
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _comment(self, send: Send) -> None:
        """Tell proxies and clients that the connection lives while there is nothing to say."""
        while True:
            await asyncio.sleep(self._keep_alive)
            if self._quiet:
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            self._quiet = True
