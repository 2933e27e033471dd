"""Decisions of the scheduler that need no network."""

from __future__ import annotations

import torch

from openmercury.engine.config import EngineConfig
from openmercury.engine.pages import PagePool
from openmercury.engine.params import SamplingParams
from openmercury.engine.policy import AutoPolicy
from openmercury.engine.request import Request
from openmercury.engine.scheduler import Scheduler


def request(tokens: int) -> Request:
    return Request([1] * tokens, SamplingParams(mode="diffusion", max_tokens=8), frozenset(), 4)


def test_a_request_that_gives_way_before_it_ran_keeps_its_block() -> None:
    """It goes back as it came: what its slot holds belongs to the request before it."""
    config = EngineConfig(page_size=4, max_requests=2)
    scheduler = Scheduler(config, PagePool(4, 4, remember=False), AutoPolicy.of(config, "cpu", drafts=True))
    first, second = request(4), request(4)
    scheduler.submit(first)
    scheduler.schedule()
    first.written = first.prefill_end
    first.tokens += [1] * 4  # now it needs two pages more, and one is free once the second has come
    second.ahead = block = torch.arange(4)
    scheduler.submit(second)
    plan = scheduler.schedule()
    assert (plan.admitted, plan.preempted) == ([], [])
    assert second.ahead is block
    assert list(scheduler.waiting) == [second]
    scheduler.pool.check_integrity([first.pages])
