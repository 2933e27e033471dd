"""Who runs next: admission, prefill under a token budget, pages, preemption. Host only; decided here, nowhere else."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from openmercury.diffusion.sample import Sampling
from openmercury.engine.config import EngineConfig
from openmercury.engine.modes import COPIED, Shape
from openmercury.engine.pages import PagePool
from openmercury.engine.policy import AutoPolicy
from openmercury.engine.request import Request
from openmercury.errors import ContextOverflowError, QueueFullError


class PrefillSpan(NamedTuple):
    """Committed tokens of one request to write: `length` from position `start` on."""

    request: Request
    start: int
    length: int


class Decode(NamedTuple):
    """`steps` forwards of requests that share a shape; `sampling` serves them all."""

    shape: Shape
    requests: list[Request]
    sampling: Sampling
    steps: int

    @property
    def most_committed(self) -> int:
        """Tokens a request can gain."""
        return self.shape.most_committed * self.steps


@dataclass
class Plan:
    """One step: what to prefill, then who decodes, and how the device's rows change before."""

    prefill: list[PrefillSpan] = field(default_factory=list)
    decode: list[Decode] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    preempted: list[tuple[Request, int]] = field(default_factory=list)  # with the slot each had
    paged: list[Request] = field(default_factory=list)  # their page tables grew


SAMPLINGS: tuple[Sampling, ...] = ("greedy", "sampled", "truncated")  # each also serves those before it
GROWTH = 8  # pages taken at a time while there are plenty


def queue_full(waiting: int) -> QueueFullError:
    """What is said to one more than may wait."""
    return QueueFullError(f"{waiting} requests wait already: try again later, or raise max_waiting or max_requests")


class Scheduler:
    """Waiting and running requests, slots and pages."""

    def __init__(self, config: EngineConfig, pool: PagePool, policy: AutoPolicy) -> None:
        self.config, self.pool, self.policy = config, pool, policy
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of admission
        self.free_slots = list(range(config.max_requests, 0, -1))

    @property
    def room(self) -> float:
        """How many more may be submitted before the next step: those that find a free slot do not wait."""
        most = math.inf if self.config.max_waiting is None else self.config.max_waiting
        return most + len(self.free_slots) - len(self.waiting)

    def check_room(self, coming: int = 0) -> None:
        """Raise QueueFullError where there is no room behind the `coming` ones."""
        if self.room <= coming:
            raise queue_full(len(self.waiting) + coming)

    def submit(self, request: Request) -> None:
        """Queue a request; raises ContextOverflowError when it could not fit even alone, and as `check_room`."""
        self.check_room()
        needed = self._pages_for(request.limit)
        if needed > self.pool.capacity:
            raise ContextOverflowError(
                f"the request needs {needed * self.pool.size} tokens of KV cache and there are "
                f"{self.pool.capacity * self.pool.size}: lower max_tokens or raise cache_tokens"
            )
        if request.params.deadline is not None:
            request.expires = time.monotonic() + request.params.deadline
        self.waiting.append(request)

    def schedule(self, settle: Callable[[], None] = lambda: None, *, watched: bool = False) -> Plan:
        """The next step. Finished requests must have been released before.

        `settle` brings all requests up to date with forwards still under way; it is called before one is preempted.
        Where somebody has `watched`, every forward is to be read.
        """
        plan = Plan()
        self._admit(plan)
        self._plan_prefill(plan)
        for decode in self._shaped([request for request in self.running if not request.unwritten], watched):
            for request in decode.requests:
                self._grow(request, decode.most_committed, plan, settle)
            plan.decode.append(decode)
        # Growth may have preempted some, also of a shape that came before.
        for decode in plan.decode:
            decode.requests[:] = [request for request in decode.requests if request.slot is not None]
        plan.decode = [decode for decode in plan.decode if decode.requests]
        return plan

    def release(self, request: Request) -> None:
        """Take a finished or preempted request out; what it wrote, if sound, stays known to the prefix cache."""
        if request.slot is None:
            if request in self.waiting:
                self.waiting.remove(request)
            return
        if request.sound:
            self.pool.record(request.tokens[: request.written], request.pages)
        self.pool.release(request.pages)
        self.free_slots.append(request.slot)
        self.running.remove(request)
        request.pages, request.slot, request.written = [], None, 0

    def shapes(self, alike: list[Request]) -> Sequence[Shape]:
        """What the next forwards of requests of one mode may look like: one shape, or all that `auto` has."""
        mode, width = alike[0].mode, max(request.width for request in alike)
        if mode == "auto":
            return self.policy.shapes
        if mode == "ar":
            return [Shape("ar", 1)]
        return [Shape(mode, width, self.config.draft_groups if mode == "verified" else "all")]

    def _shaped(self, ready: list[Request], watched: bool) -> list[Decode]:
        """Requests by the shape of their next forwards; the constrained ones, which the host has to look at, first."""
        free = [request for request in ready if request.constraint is None]
        bound = [request for request in ready if request.constraint is not None]
        decodes = [
            Decode(shape._replace(constrained=True), alike, _sampling(alike), 1)
            for shape, alike in self._alike(bound).items()
        ]
        for shape, alike in self._alike(free).items():
            kind = _sampling(alike)
            steps = 1 if watched or shape == COPIED else self.policy.steps(shape, len(alike), kind)
            decodes.append(Decode(shape, alike, kind, steps))
        return decodes

    def _alike(self, ready: list[Request]) -> dict[Shape, list[Request]]:
        shaped: dict[Shape, list[Request]] = {}
        copying = [request for request in ready if request.copy()]
        if copying:
            shaped[COPIED] = copying
            ready = [request for request in ready if not request.copied]
        for mode in ("ar", "verified", "diffusion"):
            alike = [request for request in ready if request.mode == mode]
            if alike:
                shaped[self.shapes(alike)[0]] = alike
        free = [request for request in ready if request.mode == "auto"]
        if free:
            shaped.setdefault(self.policy.shape(len(free), _sampling(free)), []).extend(free)
        return shaped

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.pool.size)

    def _admit(self, plan: Plan) -> None:
        while self.waiting and self.free_slots:
            request = self.waiting[0]
            # The last token is always computed anew: its prediction is wanted.
            shared = self.pool.share(request.tokens[: len(request.tokens) - 1])
            taken = self.pool.take(self._pages_for(len(request.tokens)) - len(shared))
            if taken is None:
                self.pool.release(shared)
                return
            self.waiting.popleft()
            request.pages, request.written = [*shared, *taken], len(shared) * self.pool.size
            if len(request.tokens) == len(request.prompt):
                request.cached = request.written
            request.prefill_end = len(request.tokens) - 1
            request.slot = self.free_slots.pop()
            request.admitted = request.admitted or time.monotonic()
            self.running.append(request)
            plan.admitted.append(request)

    def _plan_prefill(self, plan: Plan) -> None:
        """Chunks in order of admission while the rectangle that holds them stays within the budget."""
        longest = 0
        for request in self.running:
            count = min(request.unwritten, self.config.prefill_chunk, self.config.prefill_tokens)
            if not count:
                continue
            if max(longest, count) * (len(plan.prefill) + 1) > self.config.prefill_tokens:
                return
            longest = max(longest, count)
            plan.prefill.append(PrefillSpan(request, request.written, count))

    def _grow(self, request: Request, gain: int, plan: Plan, settle: Callable[[], None]) -> None:
        """Pages for all that the forwards under way and the coming ones may write; the youngest requests give way."""
        if request.slot is None:
            return
        reach = min(request.limit, len(request.tokens) + request.launched + gain)
        missing = self._pages_for(reach) - len(request.pages)
        if missing <= 0:
            return
        if self.pool.available > self.pool.capacity // 2:  # then more at a time, so that tables change seldom
            missing = min(max(missing, GROWTH), self._pages_for(request.limit) - len(request.pages))
        while (taken := self.pool.take(missing)) is None:
            settle()
            victim = self.running[-1]
            assert victim.slot is not None
            # One admitted only now has nothing on the device yet: its slot still holds another request's state.
            if victim in plan.admitted:
                plan.admitted.remove(victim)
            else:
                plan.preempted.append((victim, victim.slot))
            plan.prefill = [span for span in plan.prefill if span.request is not victim]
            self.release(victim)
            self.waiting.appendleft(victim)
            if victim is request:
                return
        request.pages += taken
        plan.paged.append(request)


def _sampling(requests: list[Request]) -> Sampling:
    """What choosing tokens needs so that it serves all of them."""
    return max((request.sampling for request in requests), key=SAMPLINGS.index)
