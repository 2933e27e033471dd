"""Connections whose requests do not come: the web server would wait for the head of one as long as it takes."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def impatient(seconds: float) -> type[HttpToolsProtocol]:
    """A connection that is closed where the head of a request has not come whole within so many seconds.

    They count from the connection for the first request, and from its first byte for a later one: between two, the web
    server's own limit holds.
    """

    class Impatient(HttpToolsProtocol):
        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def on_message_begin(self) -> None:
            self._wait()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._head is None:
                self._head = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

    return Impatient
