"""Thousands of short requests that end in every way there is: nothing is held afterwards, and memory is flat."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from openmercury.engine.async_engine import AsyncEngine
from openmercury.engine.config import EngineConfig
from openmercury.engine.engine import Engine
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import Request
from openmercury.errors import RequestFailedError
from tests.engine.test_engine import MODEL, POISON

FLAT = 256 * 1024  # bytes that Python may hold more at the end than after the first tenth


def resident() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def asked(rng: random.Random) -> tuple[list[int], SamplingParams]:
    """A short prompt, often with a known beginning, in 1 of 50 with a token that breaks the network."""
    prompt = [7, 8, 9, 10][: rng.choice([0, 4])] + [rng.randrange(63) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.02:
        prompt.append(POISON)
    return prompt, SamplingParams.model_validate(
        {
            "mode": rng.choice(["ar", "verified", "diffusion"]),
            "max_tokens": rng.randint(1, 8),
            "temperature": rng.choice([0.0, 0.8]),
            "seed": rng.randrange(2**40),
            "frequency_penalty": rng.choice([0.0, 0.0, 0.5]),
            "deadline": rng.choice([None, None, None, 1e-4, 0.02]),
        }
    )


def make() -> Engine:
    """Room for 16 requests, and for the pages of about 10: some are preempted, and prefixes are forgotten."""
    return Engine(MODEL, EngineConfig(max_requests=16, page_size=2, cache_tokens=150, draft_width=3, prefill_tokens=64))


def stepped(rng: random.Random, engine: Engine, count: int) -> Counter[str | None]:
    """Through `step`, aborting one in ten at some time; returns how many ended how."""
    ends, live, coming = Counter[str | None](), list[Request](), count
    while coming or engine.busy:
        for _ in range(min(coming, rng.randint(0, 4), 40 - len(live))):
            live.append(engine.request(*asked(rng)))
            engine.submit(live[-1])
            coming -= 1
        if live and rng.random() < 0.1:
            rng.choice(live).finish_reason = "abort"
        engine.step()
        ends.update(request.finish_reason for request in live if request.finish_reason)
        live = [request for request in live if not request.finish_reason]
    engine.check_integrity()
    return ends


def streamed(rng: random.Random, engine: Engine, count: int) -> Counter[str | None]:
    """Through streams of 20 clients, who leave one request in five; returns how many ended how."""
    served, ends, left = AsyncEngine(engine), Counter[str | None](), count

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            stream, patience = served.submit(*asked(rng)), rng.choice([None, None, None, None, 0.002])
            try:
                async with asyncio.timeout(patience):
                    async for update in stream:
                        last = update.finish_reason
                ends[last] += 1
            except TimeoutError:
                ends["abort"] += 1
            except RequestFailedError:
                ends["error"] += 1

    async def clients() -> None:
        await asyncio.gather(*(client() for _ in range(20)))

    asyncio.run(clients())
    served.close()
    assert not served._live
    engine.check_integrity()
    return ends


def soak(count: int) -> None:
    """Ten rounds, each four fifths by steps and one fifth by streams; prints what it measured."""
    rng, engine, begin = random.Random(0), make(), time.monotonic()
    ends, held, sizes = Counter[str | None](), list[int](), list[float]()
    tracemalloc.start()
    for _ in range(10):
        ends += stepped(rng, engine, count * 8 // 100) + streamed(rng, engine, count * 2 // 100)
        pool = engine.scheduler.pool
        assert not engine.busy
        assert pool.available == pool.capacity
        assert len(engine.scheduler.free_slots) == 16
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
        sizes.append(resident())
    tracemalloc.stop()
    told = ", ".join(f"{number} {end}" for end, number in sorted(ends.items(), key=str))
    print(f"\n{count} requests in {time.monotonic() - begin:.0f} s: {told}")
    print("held by Python, kB:", *(f"{size / 1e3:.0f}" for size in held))
    print("resident, MB:", *(f"{size:.1f}" for size in sizes))
    assert ends.total() == count
    assert all(ends[end] for end in ("stop", "length", "deadline", "abort", "error"))
    assert held[-1] - held[0] < FLAT
    assert sizes[-1] - sizes[0] < 16


def test_soak() -> None:
    soak(300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_soak_long() -> None:
    soak(10_000)
