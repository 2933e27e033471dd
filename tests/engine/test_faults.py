"""Bad input and faults: each ends one request by name, in time, and leaves the others and the pages alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from openmercury.diffusion.sample import Sampling
from openmercury.engine.config import EngineConfig
from openmercury.engine.engine import Engine
from openmercury.engine.modes import Shape
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import Request
from openmercury.engine.runner import Pending
from openmercury.engine.state import Slots
from openmercury.errors import ContextOverflowError, DeviceMemoryError, QueueFullError, RequestFailedError
from tests import tiny
from tests.engine.test_engine import MODEL, POISON, Intercepted, expected

MODES = ("ar", "verified", "diffusion")


def params(mode: str = "ar", **given: Any) -> SamplingParams:
    return SamplingParams.model_validate({"mode": mode, "max_tokens": 12, "ignore_eos": False, **given})


def run(engine: Engine, requests: list[Request]) -> None:
    for _ in engine.generate(requests):
        engine.check_integrity()
    engine.check_integrity()
    pool = engine.scheduler.pool
    assert pool.available == pool.capacity


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompt", [[POISON, 5, 6, 7], [5, 6, POISON, 7], [5, 6, 7, POISON]])
def test_logits_that_are_no_numbers_fail_one_request(mode: str, prompt: list[int]) -> None:
    """Those beside it, and those that get its pages, slot or prefix afterwards, are as if it had never been."""
    engine = Engine(MODEL, EngineConfig(page_size=2, max_requests=3, cache_tokens=60, prefill_tokens=3))
    beside = [engine.request([5, 6, 7 + n], params(other)) for n, other in enumerate(MODES)]
    broken = engine.request(prompt, params(mode))
    after = [engine.request([5, 6, 7, 8 + n], params(other)) for n, other in enumerate(MODES)]
    run(engine, [*beside, broken, *after])
    assert broken.finish_reason == "error"
    assert not broken.completion
    assert isinstance(broken.error, RequestFailedError)
    assert "token 0 of the answer are NaN" in str(broken.error)
    for request in (*beside, *after):
        assert request.completion == expected(request)


def test_infinite_logits_fail_where_they_come_up() -> None:
    engine = Engine(MODEL)
    healthy = engine.request([5, 6, 7], params())
    whole = expected(healthy)
    request = engine.request([5, 6, 7], params(ignore_eos=True))
    network, forwards = engine.runner.model, 0

    def overflowing(*given: Any) -> Tensor:
        nonlocal forwards
        forwards += 1
        hidden: Tensor = network(*given)
        return hidden * torch.inf if forwards == 5 else hidden

    engine.runner.model = Intercepted(network, overflowing)  # type: ignore[assignment]
    run(engine, [request])
    assert "token 3 of the answer" in str(request.error)  # the first forward reads the prompt
    assert request.completion == whole[:3]


def explode(engine: Engine, bomb: Request, *, after: int = 0) -> list[int]:
    """Forwards in which `bomb` decodes raise once it has `after` tokens; returns the sizes of all that ran."""
    decode, sizes = engine.runner.decode, list[int]()

    def exploding(shape: Shape, slots: list[int], sampling: Sampling, forwards: int) -> Pending:
        if bomb.slot in slots and len(bomb.completion) >= after:
            raise ValueError("boom")
        sizes.append(len(slots))
        return decode(shape, slots, sampling, forwards)

    engine.runner.decode = exploding  # type: ignore[method-assign, assignment]
    return sizes


@pytest.mark.parametrize("overlap", [False, True])
def test_a_forward_that_raises_fails_the_request_that_makes_it(overlap: bool) -> None:
    engine = Engine(MODEL)
    engine.overlap = overlap
    requests = [engine.request([5, 6, 7 + n], params(max_tokens=12, ignore_eos=True)) for n in range(7)]
    sizes = explode(engine, requests[4], after=3)
    run(engine, requests)
    assert requests[4].finish_reason == "error"
    assert "raised ValueError: boom" in str(requests[4].error)
    assert isinstance(requests[4].error.__cause__, ValueError)
    for request in (*requests[:4], *requests[5:]):
        assert len(request.completion) == 12
        assert request.completion[: len(expected(request))] == expected(request)
    assert sizes.count(6) >= 5  # the innocent share forwards again


def test_a_prefill_that_raises_fails_the_request_that_makes_it() -> None:
    engine = Engine(MODEL)
    requests = [engine.request([5, 6, 7 + n], params(mode)) for n, mode in enumerate(MODES)]
    prefill = engine.runner.prefill

    def exploding(spans: Any) -> None:
        if any(span.request is requests[1] for span in spans):
            raise MemoryError
        prefill(spans)

    engine.runner.prefill = exploding  # type: ignore[method-assign]
    run(engine, requests)
    assert "raised MemoryError: report" in str(requests[1].error)
    for request in (requests[0], requests[2]):
        assert request.completion == expected(request)


def test_what_fails_only_together_finishes() -> None:
    """Too many rows at once, as where memory is short: half of them at a time get through."""
    engine = Engine(MODEL)
    requests = [engine.request([5, 6, 7 + n], params("diffusion")) for n in range(4)]
    network = engine.runner.model

    def narrow(ids_RQ: Tensor, *given: Any) -> Tensor:
        if len(ids_RQ) > 2:
            raise torch.OutOfMemoryError("too wide")
        hidden: Tensor = network(ids_RQ, *given)
        return hidden

    engine.runner.model = Intercepted(network, narrow)  # type: ignore[assignment]
    run(engine, requests)
    assert [request.completion for request in requests] == [expected(request) for request in requests]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("steps_per_sync", [1, 3])
def test_what_a_call_came_to_before_it_raised_is_not_lost(overlap: bool, steps_per_sync: int) -> None:
    engine = Engine(MODEL, EngineConfig(steps_per_sync=steps_per_sync))
    engine.overlap = overlap
    requests = [engine.request([5, 6, 7 + n], params(mode)) for n, mode in enumerate((*MODES, *MODES))]
    fetch, calls = engine.runner._fetch, 0

    def failing(*given: Any) -> Pending:
        nonlocal calls
        calls += 1
        if calls in (2, 5):
            raise MemoryError
        return fetch(*given)

    engine.runner._fetch = failing  # type: ignore[method-assign]
    run(engine, requests)
    assert [request.completion for request in requests] == [expected(request) for request in requests]


def test_memory_that_is_short_at_the_start_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Slots, "empty", short)
        with pytest.raises(DeviceMemoryError, match="state of 7 requests"):
            Engine(MODEL, EngineConfig(max_requests=7))
    with monkeypatch.context() as patch:
        patch.setattr("openmercury.engine.cache._zeros", short)
        with pytest.raises(DeviceMemoryError, match=r"cache of 4096 tokens .* lower cache_tokens"):
            Engine(MODEL, EngineConfig(cache_tokens=4096))
        with pytest.raises(DeviceMemoryError, match="lower cache_share"):
            Engine(MODEL)
    with pytest.raises(DeviceMemoryError, match="lower cache_tokens"):  # more than any machine has
        Engine(MODEL, EngineConfig(cache_tokens=2**45))


def test_a_request_that_can_never_fit() -> None:
    engine = Engine(MODEL, EngineConfig(cache_tokens=32))
    with pytest.raises(ContextOverflowError, match="lower max_tokens or raise cache_tokens"):
        engine.submit(engine.request([5] * 10, params(max_tokens=40)))
    assert not engine.busy


def test_a_full_queue_refuses() -> None:
    engine = Engine(MODEL, EngineConfig(max_requests=2, max_waiting=1))
    requests = [engine.request([5, 6 + n], params()) for n in range(6)]
    for request in requests[:3]:  # two find a slot at the next step
        engine.submit(request)
    with pytest.raises(QueueFullError, match="raise max_waiting or max_requests"):
        engine.submit(requests[3])
    while engine.busy:
        engine.step()
    run(engine, requests[3:])  # a batch waits for room instead
    assert all(request.completion == expected(request) for request in requests)


class Clock:
    """What `time` is to the engine."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in ("engine", "scheduler"):
            patch.setattr(f"openmercury.engine.{module}.time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_deadline_ends_it_in_the_midst_of_a_block(mode: str, overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    engine = Engine(MODEL, EngineConfig(draft_width=2))
    engine.overlap = overlap
    late = engine.request([5, 6, 7], params(mode, max_tokens=40, deadline=5, ignore_eos=True))
    other = engine.request([5, 6, 8], params(mode, deadline=50))
    told = []
    for moved in engine.generate([late, other]):
        told += [request.finish_reason for request in moved if request is late]
        if len(late.completion) > 3:
            clock.now = 105.5
    assert late.finish_reason == told[-1] == "deadline"
    assert told.count("deadline") == 1
    assert 3 < len(late.completion) < 40
    assert late.completion == expected(late)[: len(late.completion)] or tiny.EOS in late.completion
    assert other.completion == expected(other)
    engine.check_integrity()


def test_a_deadline_ends_it_in_the_queue_and_in_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    engine = Engine(MODEL, EngineConfig(max_requests=1, prefill_tokens=4, prefill_chunk=4))
    reading = engine.request([5] * 20, params(deadline=1))
    queued = engine.request([5, 6], params(deadline=1))
    for request in (reading, queued):
        engine.submit(request)
    engine.step()
    assert (reading.slot, reading.unwritten, queued.slot) == (1, 15, None)
    clock.now += 1.5
    assert engine.step() == [reading, queued]
    assert [request.finish_reason for request in (reading, queued)] == ["deadline", "deadline"]
    assert not engine.busy
    engine.check_integrity()
    assert engine.scheduler.pool.available == engine.scheduler.pool.capacity
