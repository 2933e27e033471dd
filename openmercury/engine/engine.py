"""The engine: requests are submitted at any time, run in shared forwards, and leave when they finish.

One `step` is: schedule → prefill → decoding forwards → read what happened. Token ids in, token ids out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from openmercury.diffusion.sample import Sampling
from openmercury.engine.config import EngineConfig
from openmercury.engine.modes import Shape
from openmercury.engine.pages import PagePool
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import Request
from openmercury.engine.runner import Pending, Progress, Runner
from openmercury.engine.scheduler import Plan, Scheduler
from openmercury.engine.state import MAX_STOP_IDS, RUNNING, STOP
from openmercury.engine.stats import EngineStats, timed_host
from openmercury.errors import ContextOverflowError, EmptyPromptError, InputError, UnsupportedError
from openmercury.model.transformer import Transformer

WIDEST = 128  # positions a block may have: requests ask for up to 64, `probe` for more
SAMPLINGS: tuple[Sampling, ...] = ("greedy", "sampled", "truncated")  # each also serves those before it


class Engine:
    """Decodes requests with one network."""

    def __init__(self, model: Transformer, config: EngineConfig | None = None) -> None:
        facts = model.config.diffusion
        if facts is not None and (facts.clean_attention != "causal" or facts.block_aligned or not facts.logit_shift):
            raise UnsupportedError(
                "only checkpoints with causal clean attention, free blocks and logit shift can be decoded: "
                "use one trained by `openmercury train`"
            )
        self.model = model
        self.config = config or EngineConfig()
        self.runner = Runner(model, self.config, WIDEST)
        pool = PagePool(self.runner.pages, self.config.page_size, remember=self.config.prefix_cache)
        self.scheduler = Scheduler(self.config, pool)
        self.launched: list[tuple[list[Request], Pending]] = []
        self.overlap = self.runner.fused
        self.stats: EngineStats | None = None

    def request(self, prompt: Sequence[int], params: SamplingParams, eos: Sequence[int] | None = None) -> Request:
        """Check a prompt against the checkpoint; raises InputError or UnsupportedError with the remedy.

        `max_tokens` beyond the context is lowered to what fits; such an answer ends with finish_reason "length".
        """
        config = self.model.config
        if not prompt:
            raise EmptyPromptError("the prompt is empty: give at least one token")
        if len(prompt) >= config.max_context:
            raise ContextOverflowError(
                f"the prompt has {len(prompt)} tokens and the context holds {config.max_context}: shorten the prompt"
            )
        if params.mode != "ar" and (config.diffusion is None or config.diffusion.adapter is None):
            raise UnsupportedError(
                f"this checkpoint has no diffusion adapter, so mode {params.mode} cannot run: use mode ar or train one"
            )
        room = config.max_context - len(prompt)
        if params.max_tokens > room:
            params = params.model_copy(update={"max_tokens": room})
        facts = config.diffusion
        block = min(facts.block_size, self.config.block_limit) if facts is not None else 1
        width = params.block_size or (self.config.draft_width if params.mode == "verified" else block)
        ends = frozenset() if params.ignore_eos else frozenset(config.eos_ids if eos is None else eos)
        if len(ends) > MAX_STOP_IDS:
            raise InputError(f"there are {len(ends)} stop ids and room for {MAX_STOP_IDS}: give fewer")
        return Request(list(prompt), params, ends, width)

    def submit(self, request: Request) -> None:
        """Queue a request; raises ContextOverflowError when its text could never fit into the cache."""
        self.scheduler.submit(request)

    def record(self) -> EngineStats:
        """Time all parts of the work from now on."""
        self.stats = EngineStats(self.runner.device, self.runner.replay_apart)
        self.runner.record(self.stats)
        return self.stats

    @property
    def busy(self) -> bool:
        """Is anything waiting or running?"""
        return bool(self.scheduler.waiting or self.scheduler.running or self.launched)

    def step(self, *, wait: bool = False) -> list[Request]:
        """Run one step and return the requests that went on: their tokens, forwards and finish_reason are current.

        With `overlap` (the default on CUDA) a step launches its forwards and then reads those of the step before, so
        the device never waits for the host; a request that has ended takes part in one more forward, to no effect.
        `wait` reads this step's, too.
        """
        moved: list[Request] = []
        before, self.launched = self.launched, []

        def settle() -> None:
            moved.extend(self._read(before))
            before.clear()

        with timed_host(self.stats, "schedule"):
            self._drop_ended()
            plan = self.scheduler.schedule(settle)
            self._prepare(plan)
        if self.stats is not None:
            pool = self.scheduler.pool
            self.stats.pages(pool.capacity - pool.available, pool.capacity)
        with timed_host(self.stats, "launch"):
            if plan.prefill:
                self.runner.prefill(plan.prefill)
                for request, start, length in plan.prefill:
                    request.written = start + length
            for shape, requests in plan.decode:
                self.launched.append((requests, self._launch(shape, requests)))
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
        A caller ends a request early by setting its `finish_reason`. Leaving the loop ends all of them.
        """
        coming, submitted = deque(zip(arrivals or [0.0] * len(requests), requests, strict=True)), list[Request]()
        begin = time.monotonic()
        try:
            while coming or submitted:
                if coming and not submitted:
                    time.sleep(max(0.0, begin + coming[0][0] - time.monotonic()))
                while coming and (concurrency is None or len(submitted) < concurrency):
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
                    request.finish_reason = "stop"
            self._drop_ended()

    def check_integrity(self) -> None:
        """Assert that no page or slot is lost or shared by mistake."""
        running = self.scheduler.running
        self.scheduler.pool.check_integrity([request.pages for request in running])
        slots = [request.slot for request in running if request.slot is not None]
        assert len(slots) == len(running)
        assert sorted([*slots, *self.scheduler.free_slots]) == list(range(1, self.config.max_requests + 1))
        assert all(request.slot is None and not request.pages for request in self.scheduler.waiting)

    def _drop_ended(self) -> None:
        """Release requests that finished, were ended by the caller, or ran out of time."""
        now = time.monotonic()
        ended = []
        for request in (*self.scheduler.running, *self.scheduler.waiting):
            if request.finish_reason is None and request.expires is not None and now > request.expires:
                request.finish_reason = "deadline"
            if request.finish_reason is not None:
                ended.append(request)
        slots = [request.slot for request in ended if request.slot is not None]
        if slots:
            self.runner.leave(slots)
        for request in ended:
            self.scheduler.release(request)

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

    def _launch(self, shape: Shape, requests: list[Request]) -> Pending:
        slots = [request.slot for request in requests if request.slot is not None]
        sampling = max((request.sampling for request in requests), key=SAMPLINGS.index)
        return self.runner.decode(shape, slots, sampling, self.config.steps_per_sync)

    def _read(self, launched: list[tuple[list[Request], Pending]]) -> list[Request]:
        """Take what launched forwards gave. One that ended meanwhile takes nothing more."""
        moved = []
        with timed_host(self.stats, "read"):
            for requests, pending in launched:
                for request, progress in zip(requests, self.runner.results(pending), strict=True):
                    if request.finish_reason is None:
                        _take(request, progress)
                        moved.append(request)
        return moved


def _take(request: Request, progress: Progress) -> None:
    request.tokens += progress.tokens
    request.written, request.forwards = progress.written, progress.forwards
    if progress.done != RUNNING:
        request.finish_reason = "stop" if progress.done == STOP else "length"
