"""The engine: requests are submitted at any time, run in shared forwards, and leave when they finish.

One `step` is: schedule → prefill → decoding forwards → read what happened. Token ids in, token ids out.

A request that cannot go on ends with finish_reason "error" and an `error` that says why; those beside it go on. A
forward that raises is not repeated as it was: half of its requests run in one forward of the next step, half in
another, and so on until the request that fails alone is found; those that pass are no longer suspected.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from openmercury.engine.config import ROW_BUCKETS, EngineConfig, bucket
from openmercury.engine.constraint import Constraint
from openmercury.engine.guide import cannot_follow, guide
from openmercury.engine.modes import COPIED, Shape
from openmercury.engine.pages import PagePool
from openmercury.engine.params import SamplingParams
from openmercury.engine.policy import AutoPolicy, Load, Report
from openmercury.engine.request import Request, asked
from openmercury.engine.runner import Pending, Progress, Runner
from openmercury.engine.scheduler import Decode, Plan, PrefillSpan, Scheduler
from openmercury.engine.state import FAILED, RUNNING, STOP
from openmercury.engine.stats import EngineStats, timed_host
from openmercury.errors import RequestFailedError
from openmercury.model.transformer import Transformer

T = TypeVar("T")

WIDEST = 128  # positions a block may have: requests ask for up to 64, `probe` for more


class Counts(NamedTuple):
    """Requests by where they are, and pages of the cache."""

    running: int
    waiting: int
    pages: int
    pages_free: int


class Engine:
    """Decodes requests with one network."""

    def __init__(self, model: Transformer, config: EngineConfig | None = None) -> None:
        facts = model.config.diffusion
        if facts is not None:
            facts.check_decodable()
        self.model = model
        self.config = config or EngineConfig()
        self.runner = Runner(model, self.config, WIDEST)
        pool = PagePool(self.runner.pages, self.config.page_size, remember=self.config.prefix_cache)
        drafts = facts is not None
        self.policy = AutoPolicy.of(self.config, "cuda" if self.runner.fused else "cpu", drafts=drafts)
        self.scheduler = Scheduler(self.config, pool, self.policy)
        self.launched: list[tuple[Decode, Pending]] = []
        self.overlap = self.runner.fused
        self.suspicions = itertools.count(1)
        self.stats: EngineStats | None = None

    def request(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        eos: Sequence[int] | None = None,
        *,
        expected: Sequence[int] | None = None,
        constraint: Constraint | None = None,
    ) -> Request:
        """Check a prompt against the checkpoint; raises InputError or UnsupportedError with the remedy.

        `expected` are tokens that may well come, such as a text of which an edited one is asked for: where the answer
        follows them, many are verified in one forward. They change nothing but the speed.

        With a `constraint`, which serves one request only, the answer is a text of its grammar, or the beginning of one
        and ends with finish_reason "length".

        `max_tokens` beyond the context is lowered to what fits; such an answer ends with finish_reason "length".
        """
        facts = self.model.config.diffusion
        block = min(facts.block_size, self.config.block_limit) if facts is not None else 1
        drafted = self.config.draft_width if params.mode == "verified" else block
        widest = max(shape.width for shape in self.policy.shapes)
        width = widest if params.mode == "auto" else params.block_size or drafted
        return asked(self.model.config, prompt, params, eos, expected, constraint, width)

    def submit(self, request: Request) -> None:
        """Queue a request; raises ContextOverflowError where its text can never fit into the cache, QueueFullError."""
        self.scheduler.submit(request)

    def record(self) -> EngineStats:
        """Time all parts of the work from now on."""
        self.stats = EngineStats(self.runner.device, self.runner.replay_apart)
        self.runner.record(self.stats)
        return self.stats

    def warm_up(self, requests: int, params: SamplingParams, *, expected: bool = False) -> None:
        """Capture the CUDA graphs that up to `requests` at once of these params may want, and those that read prompts.

        With `expected` they bring text that they expect.

        Their times are the policy's first, so that `auto` need not try shapes while requests wait. Takes about a
        quarter of a second a graph, more where kernels are compiled; does nothing where no graphs are used.
        """
        if not (self.runner.fused and self.config.graphs):
            return
        self.runner.warm_prefill()
        request = self.request([0], params, expected=[0] if expected else None)
        kind, most = request.sampling, min(requests, self.config.max_requests)
        for rows in (size for size in ROW_BUCKETS if size <= bucket(most, ROW_BUCKETS)):
            shapes = [_as_asked(shape, request) for shape in self.scheduler.shapes([request])]
            if expected:
                self.runner.warm_decode(_as_asked(COPIED, request), rows, kind, 1)
            for shape in shapes:
                seconds = self.runner.warm_decode(shape, rows, kind, 1)
                self.policy.costs.observe(Load.of(rows, kind), shape, Report(1, seconds, 0, 0))
            for shape in shapes:
                self.runner.warm_decode(shape, rows, kind, self.policy.steps(shape, rows, kind))

    @property
    def room(self) -> float:
        """How many more requests may be submitted; see `Scheduler.room`."""
        return self.scheduler.room

    def check_room(self, coming: int) -> None:
        """Raise QueueFullError where there is no room behind the `coming` ones."""
        self.scheduler.check_room(coming)

    def counts(self) -> Counts:
        """How much is under way, and how full the cache is."""
        pool = self.scheduler.pool
        return Counts(len(self.scheduler.running), len(self.scheduler.waiting), pool.capacity, pool.available)

    def drafts(self, request: Request) -> list[int]:
        """See `Runner.drafts`."""
        return self.runner.drafts(request)

    @property
    def busy(self) -> bool:
        """Is anything waiting or running?"""
        return bool(self.scheduler.waiting or self.scheduler.running or self.launched)

    def step(self, *, wait: bool = False) -> list[Request]:
        """Run one step and return the requests that went on or ended: tokens, forwards, finish_reason are current.

        With `overlap` (the default on CUDA) a step launches its forwards and then reads those of the step before, so
        the device never waits for the host; a request that has ended takes part in one more forward, to no effect.
        `wait` reads this step's, too, and so does a request that is watched.
        """
        wait = wait or any(request.watched for request in (*self.scheduler.running, *self.scheduler.waiting))
        moved: list[Request] = []
        before, self.launched = self.launched, []

        def settle() -> None:
            moved.extend(self._read(before))
            before.clear()

        with timed_host(self.stats, "schedule"):
            if any(request.expected is not None and request.launched for request in self.scheduler.running):
                settle()  # what is expected next is found on the host, which must know the text
            moved += self._drop_ended()
            plan = self.scheduler.schedule(settle, watched=wait)
            self._prepare(plan)
        if self.stats is not None:
            pool = self.scheduler.pool
            self.stats.pages(pool.capacity - pool.available, pool.capacity)
        with timed_host(self.stats, "launch"):
            for spans in _apart(plan.prefill, lambda span: span.request):
                moved += self._prefill(spans)
            for decode in plan.decode:
                for requests in _apart(decode.requests, lambda request: request):
                    moved += self._launch(decode._replace(requests=requests), settle)
        settle()
        if wait or not self.overlap:
            moved += self._read(self.launched)
            self.launched = []
        return moved

    def generate(
        self,
        requests: list[Request],
        *,
        wait: bool = False,
        concurrency: int | None = None,
        arrivals: Sequence[float] | None = None,
    ) -> Iterator[list[Request]]:
        """Submit these and step until all are finished; yields those that went on, after each step with any.

        With `concurrency` that many are submitted, and one more whenever one finishes (a closed loop). With `arrivals`
        each is submitted that many seconds after the start, in ascending order, whatever is under way (an open loop).
        Those that `max_waiting` keeps out come later. A caller ends a request early by setting its `finish_reason`.
        Leaving the loop aborts all of them.
        """
        coming, submitted = deque(zip(arrivals or [0.0] * len(requests), requests, strict=True)), list[Request]()
        begin = time.monotonic()
        try:
            while coming or submitted:
                if coming and not submitted and (early := begin + coming[0][0] - time.monotonic()) > 0:
                    time.sleep(early)
                while coming and self.scheduler.room > 0 and (concurrency is None or len(submitted) < concurrency):
                    if begin + coming[0][0] > time.monotonic():
                        break
                    submitted.append(coming.popleft()[1])
                    self.submit(submitted[-1])
                moved = self.step(wait=wait)
                if moved:
                    with timed_host(self.stats, "text"):
                        yield moved
                submitted = [request for request in submitted if request.finish_reason is None]
        finally:
            for request in requests:
                if request.finish_reason is None:
                    request.finish_reason = "abort"
            self._drop_ended()

    def check_integrity(self) -> None:
        """Assert that no page or slot is lost or shared by mistake."""
        running = self.scheduler.running
        self.scheduler.pool.check_integrity([request.pages for request in running])
        slots = [request.slot for request in running if request.slot is not None]
        assert len(slots) == len(running)
        assert sorted([*slots, *self.scheduler.free_slots]) == list(range(1, self.config.max_requests + 1))
        assert all(request.slot is None and not request.pages for request in self.scheduler.waiting)

    def _drop_ended(self) -> list[Request]:
        """Release requests that finished, were ended by the caller, or run out of time; returns the last."""
        now = time.monotonic()
        ended, expired = [], []
        for request in (*self.scheduler.running, *self.scheduler.waiting):
            if request.finish_reason is None and request.expires is not None and now > request.expires:
                request.finish_reason = "deadline"
                expired.append(request)
            if request.finish_reason is not None:
                ended.append(request)
        slots = [request.slot for request in ended if request.slot is not None and not request.over]
        if slots:
            self.runner.leave(slots)
        for request in ended:
            self.scheduler.release(request)
        return expired

    def _prepare(self, plan: Plan) -> None:
        for request, slot in plan.preempted:
            if request.mode == "diffusion":
                request.ahead = self.runner.block(slot)
        if plan.preempted:
            self.runner.leave([slot for _, slot in plan.preempted])
        if plan.admitted:
            self.runner.admit(plan.admitted)
        grown = [request for request in plan.paged if request.slot is not None]
        if grown:
            self.runner.set_pages(grown)

    def _prefill(self, spans: list[PrefillSpan]) -> list[Request]:
        """Write spans of requests under the same suspicion; returns those that failed."""
        requests = [span.request for span in spans]
        try:
            self.runner.prefill(spans)
        except Exception as error:  # whatever it is, it must not end requests that have no part in it
            return self._suspect(requests, error)
        for request, start, length in spans:
            request.written = start + length
        return _trust(requests)

    def _launch(self, decode: Decode, settle: Callable[[], None]) -> list[Request]:
        """Launch decoding forwards of requests under the same suspicion; returns those that failed."""
        shape, requests, sampling, steps = decode
        failed: list[Request] = []
        if shape.constrained:
            settle()  # what may come depends on all that has
            requests, failed = guide(self.runner, shape, requests)
            decode = decode._replace(requests=requests)
            if not requests:
                return failed
        shape = shape._replace(penalised=any(request.penalised for request in requests))
        slots = [request.slot for request in requests if request.slot is not None]
        try:
            if shape.groups == "none":
                self.runner.stand(slots, [(request.copied, len(request.copied)) for request in requests])
            pending = self.runner.decode(shape, slots, sampling, steps)
            _trust(requests)
        except Exception as error:  # as above; the rows stand as after their last whole forward
            settle()  # then all that is not known here is what this call came to
            pending = self.runner.gained(shape, requests, steps)
            failed += self._suspect(requests, error)
        for request in requests:
            request.launched += decode.most_committed
        self.launched.append((decode, pending))
        return failed

    def _suspect(self, requests: list[Request], error: Exception) -> list[Request]:
        """One of these makes a forward raise: fail it if it was alone, else part them; returns those that failed."""
        if len(requests) == 1:
            cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            failure = RequestFailedError(f"a forward of this request alone raised {cause}: report it as a bug")
            failure.__cause__ = error
            requests[0].fail(failure)
            return requests
        for half in (requests[: len(requests) // 2], requests[len(requests) // 2 :]):
            number = next(self.suspicions)
            for request in half:
                request.suspects = number
        return []

    def _read(self, launched: list[tuple[Decode, Pending]]) -> list[Request]:
        """Take what launched forwards gave, and let the policy learn. One that ended meanwhile takes nothing more."""
        moved = []
        with timed_host(self.stats, "read"):
            for decode, pending in launched:
                tokens = forwards = 0
                for request, progress in zip(decode.requests, self.runner.results(pending), strict=True):
                    request.launched -= decode.most_committed
                    if request.finish_reason is None:
                        tokens += len(progress.tokens)
                        forwards += progress.forwards - request.forwards
                        _take(request, progress)
                        moved.append(request)
                # Copied drafts, and a grammar's choices, say nothing of the network's own.
                if decode.shape.groups != "none" and not decode.shape.constrained:
                    report = Report(decode.steps, pending.seconds(), tokens, forwards)
                    self.policy.observe(decode.shape, len(decode.requests), decode.sampling, report)
        return moved


def _as_asked(shape: Shape, request: Request) -> Shape:
    return shape._replace(penalised=request.penalised)


def _apart(items: Sequence[T], request_of: Callable[[T], Request]) -> Iterable[list[T]]:
    """The items in groups whose requests are under the same suspicion."""
    groups: dict[int, list[T]] = {}
    for item in items:
        groups.setdefault(request_of(item).suspects, []).append(item)
    return groups.values()


def _trust(requests: list[Request]) -> list[Request]:
    """A forward of these has passed: they are no longer suspected, and none of them failed."""
    for request in requests:
        request.suspects = 0
    return []


def _take(request: Request, progress: Progress) -> None:
    request.tokens += progress.tokens
    request.written, request.forwards = progress.written, progress.forwards
    request.over = progress.done != RUNNING
    if progress.done == FAILED:
        request.fail(
            RequestFailedError(
                f"the network's logits behind token {len(request.completion)} of the answer are NaN or infinite: "
                "try dtype float32, and check the checkpoint's weights"
            )
        )
    elif request.over:
        request.finish_reason = "stop" if progress.done == STOP else "length"
    if request.constraint is not None and request.finish_reason != "error":
        try:
            request.constraint.commit(progress.tokens)
            if request.constraint.finished:
                request.finish_reason = "stop"
        except Exception as error:  # as in `guide`
            request.fail(cannot_follow(error))
