"""The engine on a thread of its own: requests come from any thread or event loop, progress goes where it is awaited.

    engine = AsyncEngine(Engine(model))
    async for update in engine.submit(ids, SamplingParams()):
        ...

Nobody waits for a slow reader and nothing piles up behind one: updates not yet read are merged into one. Only the
engine's thread touches the engine; everyone else leaves a message in its inbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from openmercury.engine.constraint import Constraint
from openmercury.engine.engine import Engine
from openmercury.engine.params import SamplingParams
from openmercury.engine.remote import RemoteEngine
from openmercury.engine.request import FinishReason, Request
from openmercury.errors import EngineStoppedError, OpenMercuryError

T = TypeVar("T")
# On its way to a client an update takes 60 µs of a core by itself and 130 µs beside an engine that keeps the
# interpreter busy (docs/server.md): 20 in 30 ms are 4 to 9 %.
READERS = 20
_Reader = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Update(NamedTuple):
    """Tokens committed since the last update, forwards so far, the draft behind them, and how it ended, once it has.

    `draft` is empty unless asked for; see `Runner.drafts`.
    """

    tokens: list[int]
    forwards: int
    draft: list[int]
    finish_reason: FinishReason | None
    cached: int = 0  # tokens of the prompt that needed no reading


class Stream:
    """Progress of one request, for one reader. It ends behind the update that has a finish_reason; an error is raised.

    Cancelling the task that awaits an update, `abort`, `aclose`, leaving `async with` and dropping the stream all end
    the request within one step.
    """

    def __init__(self, mailbox: _Mailbox) -> None:
        self._mailbox = mailbox

    @property
    def admitted(self) -> float | None:
        """When it left the queue (time.monotonic), once it has."""
        return self._mailbox.request.admitted

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Update:
        try:
            return await self._mailbox.read()
        except asyncio.CancelledError:
            self.abort()
            raise

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()

    async def aclose(self) -> None:
        """End the request."""
        self.abort()

    def abort(self) -> None:
        """End the request, and whoever awaits its next update; from any thread, and at any time."""
        self._mailbox.shut()

    def __del__(self) -> None:
        self._mailbox.cancel()


class AsyncEngine:
    """Owns an engine and the one thread that may touch it."""

    def __init__(self, engine: Engine | RemoteEngine) -> None:
        self.engine = engine
        self._inbox: queue.SimpleQueue[_Mailbox | _Errand | None] = queue.SimpleQueue()  # may be filled from `__del__`
        self._live: dict[Request, _Mailbox] = {}
        self._gate = threading.Lock()  # nothing enters the inbox once `_stopped` is set
        self._stopped: EngineStoppedError | None = None
        self._aborting = False
        self._woken: list[_Reader] = []  # readers with news, on the engine's thread
        self._thread = threading.Thread(target=self._serve, name="openmercury-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        eos: Sequence[int] | None = None,
        *,
        draft: bool = False,
        expected: Sequence[int] | None = None,
        constraint: Constraint | None = None,
        pace: float = 0.0,
    ) -> Stream:
        """Queue a request, from any thread; raises as `Engine.request`, QueueFullError and EngineStoppedError.

        With a `pace` there is one update in each so many seconds at most, but the last comes at once: a reader that is
        woken by every forward takes time from those of everyone. Readers of one pace are woken at the same moments;
        where more than READERS requests are under way, the pace is twice, three times … as slow.
        """
        request = self.engine.request(prompt, params, eos, expected=expected, constraint=constraint)
        request.watched = draft
        mailbox = _Mailbox(request, self._inbox, lambda: pace * -(-len(self._live) // READERS))
        with self._gate:
            if self._stopped is not None:
                raise self._stopped.with_traceback(None)
            self.engine.check_room(self._inbox.qsize())
            self._inbox.put(mailbox)
        return Stream(mailbox)

    @property
    def stopped(self) -> EngineStoppedError | None:
        """Why it takes no more requests: it was closed, or broke down."""
        return self._stopped

    async def run(self, job: Callable[[], T]) -> T:
        """Have the engine's thread do something else with the network, between two steps, and wait for the result.

        Requests under way wait meanwhile. Raises EngineStoppedError.
        """
        errand = _Errand(job)
        with self._gate:
            if self._stopped is not None:
                raise self._stopped.with_traceback(None)
            self._inbox.put(errand)
        result: T = await asyncio.wrap_future(errand.result)
        return result

    def look(self) -> None:
        """Have the engine's thread look at its engine, though nobody asks for anything; from any thread."""
        self._inbox.put(_Errand(lambda: None))

    def close(self, *, drain: bool = True) -> None:
        """Refuse new requests, finish those under way or (without `drain`) fail them, and end the thread.

        Blocks until that is done. A second call, from another thread, may cut the first one's draining short.
        """
        with self._gate:
            self._stopped = self._stopped or EngineStoppedError("the engine is closed: start another one")
        self._aborting = self._aborting or not drain
        self._inbox.put(None)
        self._thread.join()

    # --- on the engine's thread --------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while self._receive():
                self._step()
        except BaseException as cause:  # whatever it is, nobody may be left waiting
            error = EngineStoppedError(f"the engine broke down ({type(cause).__name__}: {cause}): start another one")
            error.__cause__ = cause
            if isinstance(cause, EngineStoppedError):  # it has said so itself
                error = cause
            with self._gate:
                self._stopped = error
            with contextlib.suppress(queue.Empty):
                while True:
                    message = self._inbox.get_nowait()
                    if isinstance(message, _Mailbox):
                        self._live[message.request] = message
                    elif message is not None:
                        message.result.set_exception(error)
            self._fail_all(error)

    def _receive(self) -> bool:
        """Take what has arrived, waiting where there is nothing else to do; False: closed, and nothing is left."""
        while not self._inbox.empty() or not self.engine.busy:
            if self._stopped is not None and self._inbox.empty():
                return False
            message = self._inbox.get()
            if isinstance(message, _Mailbox):
                self._take(message)
            elif message is not None:
                message.run()
        if self._aborting and self._stopped is not None:
            self._fail_all(self._stopped)
        return True

    def _take(self, mailbox: _Mailbox) -> None:
        request = mailbox.request
        if request.finish_reason is not None:  # cancelled, perhaps before it came here
            self._live.pop(request, None)
            return
        self._live[request] = mailbox
        try:
            self.engine.submit(request)
        except OpenMercuryError as error:
            request.fail(error)
            self._post(request)
            self._wake()

    def _step(self) -> None:
        for request in self.engine.step():
            if request in self._live:
                self._post(request)
        self._wake()

    def _post(self, request: Request) -> None:
        mailbox = self._live[request]
        draft = request.watched and request.finish_reason is None
        reader = mailbox.post(self.engine.drafts(request) if draft else [])
        if reader is not None:
            self._woken.append(reader)
        if request.finish_reason is not None:
            del self._live[request]

    def _wake(self) -> None:
        """Wake those with news, by one message to each loop."""
        for loop in {loop for loop, _ in self._woken}:
            _resolve(loop, [future for other, future in self._woken if other is loop])
        self._woken.clear()

    def _fail_all(self, error: EngineStoppedError) -> None:
        for request in list(self._live):
            if request.finish_reason is None:
                request.fail(error)
            self._post(request)
        self._wake()


class _Mailbox:
    """Where the engine's thread leaves progress and the reader finds it; also the message that asks and cancels."""

    def __init__(
        self,
        request: Request,
        inbox: queue.SimpleQueue[_Mailbox | _Errand | None],
        pace: Callable[[], float],
    ) -> None:
        self.request, self._inbox = request, inbox
        self._pace, self._due = pace, float("-inf")
        self._lock = threading.Lock()
        self._sent = len(request.tokens)
        self._news: Update | None = None
        self._shut = False
        self._reader: _Reader | None = None

    def post(self, draft: list[int]) -> _Reader | None:
        """Merge what the request has gained into the news; returns who is to be woken. On the engine's thread."""
        request = self.request
        with self._lock:
            unread = [] if self._news is None else self._news.tokens
            new = request.tokens[self._sent :]
            self._sent += len(new)
            self._news = Update([*unread, *new], request.forwards, draft, request.finish_reason, request.cached)
            if request.finish_reason is None and time.monotonic() < self._due:
                return None
            reader, self._reader = self._reader, None
            return reader

    async def read(self) -> Update:
        """The news, once there are any; raises the request's error, and StopAsyncIteration behind the last."""
        while True:
            with self._lock:
                if self._shut:
                    raise StopAsyncIteration
                now = time.monotonic()
                if self._news is not None and (now >= self._due or self._news.finish_reason is not None):
                    news, self._news = self._news, None
                    self._shut = news.finish_reason is not None
                    pace = self._pace()
                    self._due = now - now % pace + pace if pace else now
                    break
                if self._reader is not None:
                    raise RuntimeError("this stream is being read already: give each reader a request of its own")
                loop = asyncio.get_running_loop()
                future = loop.create_future()
                self._reader = loop, future
                if now < self._due:
                    loop.call_later(self._due - now, self._look_again, future)
            await future
        if news.finish_reason == "error" and self.request.error is not None:
            raise self.request.error
        return news

    def _look_again(self, future: asyncio.Future[None]) -> None:
        """The pace allows another update: there may be news that woke nobody. On the reader's loop."""
        with self._lock:
            if self._news is None or self._reader is None or self._reader[1] is not future:
                return
            self._reader = None
        future.set_result(None)

    def shut(self) -> None:
        """No more updates; whoever awaits one is told so."""
        self.cancel()
        with self._lock:
            self._shut = True
            reader, self._reader = self._reader, None
        if reader is not None:
            _resolve(reader[0], [reader[1]])

    def cancel(self) -> None:
        """Let the engine drop the request, if it has not ended. Takes no lock: garbage may be collected anywhere."""
        if self.request.finish_reason is None:
            self.request.finish_reason = "abort"
            self._inbox.put(self)


class _Errand:
    """Something to be done on the engine's thread, and what comes of it."""

    def __init__(self, job: Callable[[], Any]) -> None:
        self.job, self.result = job, Future[Any]()

    def run(self) -> None:
        """Do it, unless nobody waits any more."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            self.result.set_result(self.job())
        except BaseException as error:  # whatever it is, it is the asker's, who may not be left waiting
            self.result.set_exception(error)


def _resolve(loop: asyncio.AbstractEventLoop, futures: list[asyncio.Future[None]]) -> None:
    """Wake those who await these, from any thread."""

    def resolve() -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)

    with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
        loop.call_soon_threadsafe(resolve)
