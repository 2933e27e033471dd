"""The engine: requests are submitted at any time, run in shared forwards, and leave when they finish.

One `step` is: schedule → prefill → decoding forwards → read what happened. Token ids in, token ids out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from openmercury.engine.config import EngineConfig
from openmercury.engine.pages import PagePool
from openmercury.engine.params import SamplingParams
from openmercury.engine.policy import AutoPolicy, Report
from openmercury.engine.request import Request
from openmercury.engine.runner import Pending, Progress, Runner
from openmercury.engine.scheduler import Decode, Plan, Scheduler
from openmercury.engine.state import MAX_STOP_IDS, RUNNING, STOP
from openmercury.errors import ContextOverflowError, EmptyPromptError, InputError, UnsupportedError
from openmercury.model.transformer import Transformer

WIDEST = 64  # positions a block may have, as SamplingParams.block_size says


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
        drafts = facts is not None and facts.adapter is not None
        self.policy = AutoPolicy.of(self.config, "cuda" if self.runner.fused else "cpu", drafts=drafts)
        self.scheduler = Scheduler(self.config, pool, self.policy)
        self.launched: list[tuple[Decode, Pending]] = []
        self.overlap = self.runner.fused

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
        if params.mode in ("verified", "diffusion") and (config.diffusion is None or config.diffusion.adapter is None):
            raise UnsupportedError(
                f"this checkpoint has no diffusion adapter, so mode {params.mode} cannot run: use mode ar or train one"
            )
        room = config.max_context - len(prompt)
        if params.max_tokens > room:
            params = params.model_copy(update={"max_tokens": room})
        facts = config.diffusion
        block = min(facts.block_size, self.config.block_limit) if facts is not None else 1
        drafted = self.config.draft_width if params.mode == "verified" else block
        widest = max(shape.width for shape in self.policy.shapes)
        width = widest if params.mode == "auto" else params.block_size or drafted
        ends = frozenset() if params.ignore_eos else frozenset(config.eos_ids if eos is None else eos)
        if len(ends) > MAX_STOP_IDS:
            raise InputError(f"there are {len(ends)} stop ids and room for {MAX_STOP_IDS}: give fewer")
        return Request(list(prompt), params, ends, width)

    def submit(self, request: Request) -> None:
        """Queue a request; raises ContextOverflowError when its text could never fit into the cache."""
        self.scheduler.submit(request)

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
        self._drop_ended()
        moved: list[Request] = []
        before, self.launched = self.launched, []

        def settle() -> None:
            moved.extend(self._read(before))
            before.clear()

        plan = self.scheduler.schedule(settle, watched=wait)
        self._prepare(plan)
        if plan.prefill:
            self.runner.prefill(plan.prefill)
            for request, start, length in plan.prefill:
                request.written = start + length
        for decode in plan.decode:
            self.launched.append((decode, self._launch(decode)))
        settle()
        if wait or not self.overlap:
            moved += self._read(self.launched)
            self.launched = []
        return moved

    def generate(
        self, requests: list[Request], *, wait: bool = False, concurrency: int | None = None
    ) -> Iterator[list[Request]]:
        """Submit these and step until all are finished; yields those that went on, after each step with any.

        With `concurrency` that many are submitted, and one more whenever one finishes (a closed loop). A caller ends a
        request early by setting its `finish_reason`. Leaving the loop ends all of them.
        """
        coming, submitted = deque(requests), list[Request]()
        try:
            while coming or submitted:
                while coming and (concurrency is None or len(submitted) < concurrency):
                    submitted.append(coming.popleft())
                    self.submit(submitted[-1])
                moved = self.step(wait=wait)
                if moved:
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

    def _launch(self, decode: Decode) -> Pending:
        slots = [request.slot for request in decode.requests if request.slot is not None]
        for request in decode.requests:
            request.launched += decode.most_committed
        return self.runner.decode(decode.shape, slots, decode.sampling, decode.steps)

    def _read(self, launched: list[tuple[Decode, Pending]]) -> list[Request]:
        """Take what launched forwards gave, and let the policy learn. One that ended meanwhile takes nothing more."""
        moved = []
        for decode, pending in launched:
            tokens = forwards = 0
            for request, progress in zip(decode.requests, self.runner.results(pending), strict=True):
                request.launched -= decode.most_committed
                if request.finish_reason is None:
                    tokens, forwards = tokens + len(progress.tokens), forwards + progress.forwards - request.forwards
                    _take(request, progress)
                    moved.append(request)
            report = Report(decode.steps, pending.seconds(), tokens, forwards)
            self.policy.observe(decode.shape, len(decode.requests), decode.sampling, report)
        return moved


def _take(request: Request, progress: Progress) -> None:
    request.tokens += progress.tokens
    request.written, request.forwards = progress.written, progress.forwards
    if progress.done != RUNNING:
        request.finish_reason = "stop" if progress.done == STOP else "length"
