"""Connections of clients that neither send nor read: the web server would wait for them without end."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
ABORT = "abort"


def impatient(seconds: float) -> type[HttpToolsProtocol]:
    """A connection that is closed where the head of a request is not whole after so many seconds, or HEAD_BYTES.

    A request's state holds under ABORT what drops it, with all that has not been read.

    They count from the connection for the first request, and from its first byte for a later one: between two, the web
    server's own limit holds.
    """

    class Impatient(HttpToolsProtocol):
        _head: asyncio.TimerHandle | None = None  # while one is awaited
        _size = 0  # what has come of it

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._head is not None:
                self._size += len(data)
                if self._size > HEAD_BYTES:
                    self.transport.close()

        def on_message_begin(self) -> None:
            self._wait()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._stop()
            self.scope["state"][ABORT] = self.transport.abort
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._head is None:
                self._head, self._size = self.loop.call_later(seconds, self.transport.close), 0

        def _stop(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

    return Impatient
