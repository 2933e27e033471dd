"""Messages between a server and the process of its engine: JSON, or 32-bit numbers where there are hundreds a second.

A frame is its length (4 bytes), its kind (one byte) and its content. One thread of each side sends, one receives.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from openmercury import errors

HEAD = struct.Struct("<Ic")
JSON, NUMBERS = b"J", b"N"
READ_BYTES = 1 << 20

Message = dict[str, Any] | list[int]


class Wire:
    """One end of a socket; EOFError is raised where there is nobody at the other one."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self._unread = end, bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(end, selectors.EVENT_READ)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send what is rare."""
        self._send(JSON, json.dumps(message).encode())

    def tell_numbers(self, numbers: Iterable[int]) -> None:
        """Send what is frequent."""
        self._send(NUMBERS, array("i", numbers).tobytes())

    def hear(self, seconds: float | None = None) -> list[Message]:
        """The messages that have come, of which there may be none; waits that long for one, None: without end."""
        if not self._selector.select(seconds):
            return []
        try:
            came = self._end.recv(READ_BYTES)
        except OSError:
            came = b""
        if not came:
            raise EOFError
        self._unread += came
        return self._whole()

    def close(self) -> None:
        """The other side hears of it."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def _send(self, kind: bytes, content: bytes) -> None:
        try:
            self._end.sendall(HEAD.pack(len(content), kind) + content)
        except OSError:
            raise EOFError from None

    def _whole(self) -> list[Message]:
        found, at = list[Message](), 0
        while len(self._unread) >= at + HEAD.size:
            length, kind = HEAD.unpack_from(self._unread, at)
            if len(self._unread) < at + HEAD.size + length:
                break
            at += HEAD.size + length
            content = bytes(self._unread[at - length : at])
            found.append(json.loads(content) if kind == JSON else array("i", content).tolist())
        del self._unread[:at]
        return found


def told(error: BaseException) -> list[str]:
    """An error as it is sent."""
    return [type(error).__name__, str(error)]


def raised(name: str, message: str) -> Exception:
    """The same error on the other side; one that is none of ours is a RuntimeError that names it."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.OpenMercuryError):
        return kind(message)
    return MemoryError(message) if name in ("MemoryError", "OutOfMemoryError") else RuntimeError(f"{name}: {message}")
