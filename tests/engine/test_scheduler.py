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


def test_a_page_is_known_by_all_the_text_up_to_its_end() -> None:
    pool = PagePool(9, 2)
    pages = pool.take(3)
    assert pages is not None
    pool.record([1, 2, 3, 4, 5, 6], pages)
    pool.release(pages)
    assert pool.share([1, 2, 3, 4, 9, 9]) == pages[:2]
    for other in ([0, 2, 3, 4], [1, 2, 4, 3], [3, 4, 5, 6], [1, 2 + 2**16, 3, 4]):
        assert pool.share(other) in ([], pages[:1])
    assert pool.share([1, 2 + 2**16]) == []
    assert all(len(key) == 32 for key in pool.page_of)


def test_what_gave_no_token_is_not_remembered() -> None:
    """A prompt may have turned the cache into NaN: only what a token came out of is shared."""
    config = EngineConfig(page_size=2, max_requests=2)
    scheduler = Scheduler(config, PagePool(20, 2), AutoPolicy.of(config, "cpu", drafts=True))
    for gained, known in ((0, 0), (1, 2)):
        one = request(5)
        scheduler.submit(one)
        scheduler.schedule()
        one.written = one.prefill_end
        one.tokens += [1] * gained
        scheduler.release(one)
        assert len(scheduler.pool.page_of) == known
