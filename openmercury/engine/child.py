"""The process that an engine has for itself: what `remote.RemoteEngine` sends is done, and its progress is told.

What begins or ends is told behind its step, other progress once in TELL_SECONDS: whoever listens has work with each
message, and clients to serve. The engine has the main thread. One thread receives; another makes constraints, which may
take a second.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from openmercury.engine.constraint import Constraint
from openmercury.engine.engine import Engine
from openmercury.engine.guide import cannot_follow
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import FinishReason, Request
from openmercury.engine.wire import Wire, told
from openmercury.errors import OpenMercuryError
from openmercury.log import get_logger

# Of a request in a message: number, forwards, cached, microseconds since it was admitted, how it ended, and how
# many tokens and drafts follow. Before the first: is the engine busy, requests that run, that wait, free pages.
FIELDS = 7
TELL_SECONDS = 0.005
FINISHES: tuple[FinishReason | None, ...] = (None, "stop", "length", "deadline", "abort")

Make = Callable[[Sequence[str]], Constraint]


@dataclass
class _Told:
    number: int
    tokens: int  # of the request's, that the other side knows
    begun: bool = False  # has anything of it been told?


class Child:
    """Made first of all, so that the process ends with its parent even while it loads."""

    def __init__(self, end: socket.socket) -> None:
        # A terminal or a supervisor signals all processes at once: the parent has answers finished, and then ends us.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self.wire = Wire(end)
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._told: dict[Request, _Told] = {}
        self._untold: dict[Request, None] = {}  # in the order in which they moved
        self._due = 0.0  # time.monotonic, when they are told
        self._live: dict[int, Request] = {}
        self._making = set[int]()  # numbers of requests whose constraints are being made
        self._maker = ThreadPoolExecutor(1, "openmercury-constraints")
        threading.Thread(target=self._receive, name="openmercury-wire", daemon=True).start()

    def progress(self, done: int, total: int) -> None:
        """So much of the weights is read."""
        self.wire.tell({"progress": [done, total]})

    def failed(self, error: Exception) -> None:
        """There will be no engine."""
        self.wire.tell({"error": told(error)})

    def run(self, engine: Engine, facts: Mapping[str, Any], jobs: Mapping[str, Callable[..., Any]], make: Make) -> None:
        """Serve until the parent goes. `jobs` are what `RemoteEngine.call` finds here."""
        config, pages = engine.config, engine.counts().pages
        limits = {"max_requests": config.max_requests, "max_waiting": config.max_waiting, "pages": pages}
        self.wire.tell({"ready": {**facts, **limits}})
        try:
            while True:
                while not self._inbox.empty() or not engine.busy:
                    self._do(engine, self._inbox.get(), jobs, make)
                self._tell(engine, engine.step())
        except EOFError:  # the receiving thread ends the process
            threading.Event().wait()
        except BaseException as error:
            get_logger().exception("the engine broke down")
            self.wire.tell({"broke": ": ".join(told(error))})
            os._exit(1)  # the device may be in a state in which nothing can be tidied up

    def _receive(self) -> None:
        try:
            while True:
                for message in self.wire.hear():
                    assert isinstance(message, dict)
                    self._inbox.put(message)
        except EOFError:
            os._exit(0)  # the parent has ended, or wants us to: nothing here outlives it

    def _do(self, engine: Engine, message: dict[str, Any], jobs: Mapping[str, Callable[..., Any]], make: Make) -> None:
        if "call" in message:
            try:
                answer = {"result": jobs[message["call"]](*message["arguments"])}
            except Exception as error:  # whatever it is, it is the asker's
                answer = {"error": told(error)}
            self.wire.tell({"answer": answer})
            return
        for asked in message["submit"]:
            if asked["constraint"] is not None:
                self._making.add(asked["number"])
                self._maker.submit(self._make, make, asked)
            else:
                self._submit(engine, asked)
        for number in message["abort"]:
            self._making.discard(number)
            request = self._live.pop(number, None)
            if request is not None:
                request.finish_reason = request.finish_reason or "abort"
                del self._told[request]
                self._untold.pop(request, None)

    def _make(self, make: Make, asked: dict[str, Any]) -> None:
        made: Constraint | OpenMercuryError
        try:
            made = make(asked["constraint"])
        except Exception as error:  # as above
            made = cannot_follow(error)
        self._inbox.put({"submit": [{**asked, "constraint": None, "made": made}], "abort": []})

    def _submit(self, engine: Engine, asked: dict[str, Any]) -> None:
        number, made = asked["number"], asked.get("made")
        if made is not None and number not in self._making:
            return  # given up meanwhile
        self._making.discard(number)
        try:
            if isinstance(made, OpenMercuryError):
                raise made
            params = SamplingParams(**asked["params"])
            request = engine.request(asked["prompt"], params, asked["eos"], expected=asked["expected"], constraint=made)
            request.watched = asked["watched"]
            engine.submit(request)
        except OpenMercuryError as error:
            self.wire.tell({"failed": [number, told(error)]})
            return
        self._live[number], self._told[request] = request, _Told(number, len(request.tokens))

    def _tell(self, engine: Engine, moved: list[Request]) -> None:
        """One message of what is to be told behind this step, where there is anything; always one behind the last."""
        now = time.monotonic()
        self._untold |= dict.fromkeys(request for request in moved if request in self._told)
        ripe = list(self._untold)
        if engine.busy and now < self._due:
            ripe = [each for each in moved if each.finish_reason is not None or self._begins(each)]
            if not ripe:
                return
        else:
            self._due = now + TELL_SECONDS
        counts = engine.counts()
        numbers = [int(engine.busy), counts.running, counts.waiting, counts.pages_free]
        failed: list[dict[str, Any]] = []
        for request in ripe:
            self._untold.pop(request, None)
            known = self._told.get(request)
            if known is None:
                continue
            if request.finish_reason is not None:
                del self._live[known.number], self._told[request]
            if request.error is not None:  # behind the tokens that it had
                failed.append({"failed": [known.number, told(request.error)]})
            gained = request.tokens[known.tokens :]
            known.tokens, known.begun = known.tokens + len(gained), True
            drafts = engine.drafts(request) if request.watched and request.finish_reason is None else []
            waited = 0 if request.admitted is None else min(2**31 - 1, int(1e6 * (now - request.admitted)))
            finish = 0 if request.error is not None else FINISHES.index(request.finish_reason)
            numbers += (known.number, request.forwards, request.cached, waited, finish, len(gained), len(drafts))
            numbers += gained
            numbers += drafts
        self.wire.tell_numbers(numbers)
        for message in failed:
            self.wire.tell(message)

    def _begins(self, request: Request) -> bool:
        """Is this the first to be told of it? What the other side has given up asks for nothing."""
        known = self._told.get(request)
        return known is not None and not known.begun
