"""An engine in a process of its own, as `AsyncEngine` and the server see it.

The engine's thread wants a whole interpreter; beside it in one process, HTTP would take its time. Here each `Request`
is a mirror of the child's: submissions and ends go out once a step, and what all requests gained comes back in one
message for a few of the child's steps.
"""

from __future__ import annotations

import atexit
import itertools
import math
import multiprocessing
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from typing import Any

from openmercury.engine.child import FIELDS, FINISHES
from openmercury.engine.constraint import Constraint
from openmercury.engine.engine import Counts
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import Request, asked
from openmercury.engine.scheduler import queue_full
from openmercury.engine.wire import Message, Wire, raised
from openmercury.errors import EngineStoppedError, OpenMercuryError
from openmercury.model.config import ModelConfig

LOOK_SECONDS = 0.002  # how long the child's next step is awaited before others are asked what they want
END_SECONDS = 10.0  # that the child has to end, once told

Tell = Callable[[int, int], None]


class RemoteEngine:
    """Starts `target(socket, *arguments)` in a new process and waits until its engine is there.

    `source` makes plain data of a constraint, of which the child makes one of its own. `progress` is called while
    weights are read. Raises what loading raised there. One thread at a time may use it, but for `room`, `check_room`,
    `counts`, `when_ended` and `close`.
    """

    def __init__(
        self,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        config: ModelConfig,
        source: Callable[[Any], Sequence[str]],
        progress: Tell | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        self.config, self._source, self._wire = config, source, Wire(ours)
        self._live: dict[int, Request] = {}
        self._drafts: dict[Request, list[int]] = {}
        self._asked: list[dict[str, Any]] = []  # since the last step
        self._unread: deque[Message] = deque()
        self._numbers, self._behind = itertools.count(), False  # is the child's engine busy, as far as we know?
        self._broke: str | None = None
        self._closing, self._ended = False, threading.Event()
        self._lock, self._watchers = threading.Lock(), list[Callable[[], object]]()
        # Not fork, which CUDA does not survive.
        self._process = multiprocessing.get_context("spawn").Process(
            target=target, args=(theirs, *arguments), name="openmercury-engine"
        )
        resource_tracker.ensure_running()  # whose own start would unblock these
        # Blocked in the child until it ignores them: Ctrl-C while it loads is ours to tell of.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        atexit.register(self.close)  # before multiprocessing's own, which waits for the child
        threading.Thread(target=self._watch, name="openmercury-engine-watch", daemon=True).start()
        try:
            self.facts = self._ready(progress)
        except BaseException:
            self.close()
            raise
        self._max_requests, most = self.facts["max_requests"], self.facts["max_waiting"]
        self._most = math.inf if most is None else most + self._max_requests
        self._counts = Counts(0, 0, self.facts["pages"], self.facts["pages"])

    # --- as `Engine` has it ------------------------------------------------------------------------------------------

    def request(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        eos: Sequence[int] | None = None,
        *,
        expected: Sequence[int] | None = None,
        constraint: Constraint | None = None,
    ) -> Request:
        """See `Engine.request`."""
        return asked(self.config, prompt, params, eos, expected, constraint, width=1)

    def submit(self, request: Request) -> None:
        """Have it sent with the next step; raises QueueFullError. What else there is against it ends it later."""
        self.check_room(0)
        number = next(self._numbers) % 2**31
        self._live[number] = request
        self._asked.append(
            {
                "number": number,
                "prompt": request.prompt,
                "params": request.params.model_dump(exclude={"stop"}, exclude_defaults=True),
                "eos": sorted(request.eos),
                "expected": None if request.expected is None else request.expected.ids,
                "constraint": None if request.constraint is None else self._source(request.constraint),
                "watched": request.watched,
            }
        )

    @property
    def busy(self) -> bool:
        """Is anything under way, or has the child ended?"""
        return bool(self._live) or self._behind or self._ended.is_set()

    @property
    def room(self) -> float:
        """How many more may be submitted."""
        return self._most - len(self._live)

    def check_room(self, coming: int) -> None:
        """Raise QueueFullError where there is no room behind the `coming` ones."""
        if self.room <= coming:
            raise queue_full(max(0, len(self._live) - self._max_requests) + coming)

    def counts(self) -> Counts:
        """As of the child's last step."""
        return self._counts

    def drafts(self, request: Request) -> list[int]:
        """As of the child's last step; only of those that are watched."""
        return self._drafts.get(request, [])

    def step(self) -> list[Request]:
        """Send what is asked and take what has come; returns the requests that went on or ended.

        Raises EngineStoppedError where the child is gone.
        """
        ended = [number for number, request in self._live.items() if request.finish_reason is not None]
        for number in ended:
            self._forget(number)
        try:
            if ended or self._asked:
                self._wire.tell({"submit": self._asked, "abort": ended})
                self._asked = []
            if not self.busy:
                return []
            heard = list(self._unread) or self._wire.hear(LOOK_SECONDS)
        except EOFError:
            raise self._gone() from None
        self._unread.clear()
        # Several steps may have come at once: each request is to be passed on but once.
        return list(dict.fromkeys(request for message in heard for request in self._take(message)))

    # --- what only this one has --------------------------------------------------------------------------------------

    def call(self, name: str, *arguments: Any) -> Any:
        """Have the child do one of its jobs between two steps, and wait; raises what it raises there."""
        try:
            self._wire.tell({"call": name, "arguments": arguments})
            answer: dict[str, Any] | None = None
            while answer is None:
                for message in self._wire.hear():
                    if isinstance(message, dict) and "answer" in message:
                        answer = message["answer"]
                    else:
                        self._unread.append(message)
        except EOFError:
            raise self._gone() from None
        if "error" in answer:
            raise raised(*answer["error"])
        return answer["result"]

    def check_integrity(self) -> None:
        """See `Engine.check_integrity`."""
        self.call("check_integrity")

    @property
    def died(self) -> str | None:
        """Why the child has ended without being told to, if it has."""
        return str(self._gone()) if self._ended.is_set() and not self._closing else None

    def when_ended(self, tell: Callable[[], object]) -> None:
        """Call this, from another thread, when the child ends by itself."""
        with self._lock:
            self._watchers.append(tell)
            late = self._ended.is_set()
        if late:
            tell()

    def close(self) -> None:
        """End the child; requests under way are lost."""
        atexit.unregister(self.close)
        self._closing = True
        self._wire.close()
        if not self._ended.wait(END_SECONDS):
            self._process.kill()
            self._ended.wait()

    # -----------------------------------------------------------------------------------------------------------------

    def _ready(self, progress: Tell | None) -> dict[str, Any]:
        """What the child tells of itself once it is there."""
        while True:
            try:
                messages = self._wire.hear()
            except EOFError:
                raise self._gone() from None
            for message in messages:
                assert isinstance(message, dict)
                if "error" in message:
                    raise raised(*message["error"])
                if "ready" in message:
                    ready: dict[str, Any] = message["ready"]
                    return ready
                if progress is not None:
                    progress(*message["progress"])

    def _take(self, message: Message) -> list[Request]:
        if isinstance(message, list):
            return self._progress(message)
        if "broke" in message:
            self._broke = message["broke"]
            raise self._gone()
        number, (name, why) = message["failed"]
        request = self._live.get(number)
        if request is None:
            return []
        self._forget(number)
        error = raised(name, why)
        assert isinstance(error, OpenMercuryError)
        request.fail(error)
        return [request]

    def _progress(self, numbers: list[int]) -> list[Request]:
        """Bring mirrors up to date with one step; `child.Child` writes what is read here."""
        busy, running, waiting, free = numbers[:4]
        self._behind, self._counts = bool(busy), Counts(running, waiting, self._counts.pages, free)
        moved, at, now = list[Request](), 4, time.monotonic()
        while at < len(numbers):
            number, forwards, cached, waited, finish, gained, drafted = numbers[at : at + FIELDS]
            begin = at + FIELDS
            at = begin + gained + drafted
            request = self._live.get(number)
            if request is None or request.finish_reason is not None:
                continue
            request.tokens += numbers[begin : begin + gained]
            request.forwards, request.cached = forwards, cached
            request.admitted = request.admitted or now - 1e-6 * waited
            if request.watched:
                self._drafts[request] = numbers[begin + gained : at]
            if finish:
                self._forget(number)
                request.finish_reason = FINISHES[finish]
            moved.append(request)
        return moved

    def _forget(self, number: int) -> None:
        self._drafts.pop(self._live.pop(number), None)

    def _gone(self) -> EngineStoppedError:
        """What is said where the child has ended, or is about to."""
        if self._broke is not None:
            return EngineStoppedError(f"the engine broke down ({self._broke}): start the server anew")
        self._ended.wait(END_SECONDS)
        code = self._process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return EngineStoppedError(f"the engine's process ended ({how}): start the server anew")

    def _watch(self) -> None:
        self._process.join()
        with self._lock:
            self._ended.set()
            watchers = [] if self._closing else self._watchers
        for tell in watchers:
            tell()
