"""The engine behind a thread: every reader gets its whole text or an error, and nobody waits forever."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from openmercury.engine import async_engine
from openmercury.engine.async_engine import AsyncEngine, Stream, Update, _Mailbox
from openmercury.engine.config import EngineConfig
from openmercury.engine.engine import Engine
from openmercury.engine.params import SamplingParams
from openmercury.errors import EngineStoppedError, InputError, QueueFullError, RequestFailedError
from tests.engine.test_engine import MODEL, POISON, expected

ENDLESS = SamplingParams(mode="ar", max_tokens=240, ignore_eos=True)


@pytest.fixture
def served() -> Iterator[AsyncEngine]:
    engine = AsyncEngine(Engine(MODEL, EngineConfig(max_requests=4)))
    yield engine
    engine.close(drain=False)
    assert not engine._thread.is_alive()


async def whole(stream: Stream) -> tuple[list[int], Update]:
    tokens, last = list[int](), None
    async for update in stream:
        assert last is None or last.finish_reason is None
        tokens, last = tokens + update.tokens, update
    assert last is not None
    return tokens, last


def until(condition: Any) -> None:
    """Wait for what the engine's thread is about to do."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def free(served: AsyncEngine) -> bool:
    """Is everything back where it came from?"""
    pool = served.engine.scheduler.pool
    return not served.engine.busy and not served._live and pool.available == pool.capacity


def test_streams_give_the_texts_of_the_engine(served: AsyncEngine) -> None:
    given = [
        ([5, 6, 7 + n], SamplingParams(mode=mode, max_tokens=15))  # type: ignore[arg-type]
        for n, mode in enumerate(["ar", "verified", "diffusion"] * 3)
    ]

    async def main() -> list[tuple[list[int], Update]]:
        return await asyncio.gather(*(whole(served.submit(*one)) for one in given))

    for (prompt, params), (tokens, last) in zip(given, asyncio.run(main()), strict=True):
        request = served.engine.request(prompt, params)
        assert tokens == expected(request)
        assert last.finish_reason in ("stop", "length")
        assert last.forwards > 0
    until(lambda: free(served))


def test_what_is_unread_is_merged(served: AsyncEngine) -> None:
    """Submitted where no loop runs, finished before anyone reads: one update with everything."""
    stream = served.submit([5, 6, 7], SamplingParams(mode="ar", max_tokens=15))
    until(lambda: stream._mailbox.request.finish_reason and free(served))
    updates = asyncio.run(collect(stream))
    assert len(updates) == 1
    assert updates[0].tokens == expected(served.engine.request([5, 6, 7], SamplingParams(mode="ar", max_tokens=15)))


async def collect(stream: Stream) -> list[Update]:
    return [update async for update in stream]


def test_drafts_are_shown_on_request(served: AsyncEngine) -> None:
    params = SamplingParams(mode="diffusion", max_tokens=20, threshold=0.9, ignore_eos=True)
    updates = asyncio.run(collect(served.submit([5, 6, 7], params, draft=True)))
    assert any(update.draft for update in updates[:-1])
    assert not updates[-1].draft
    assert not any(update.draft for update in asyncio.run(collect(served.submit([5, 6, 7], params))))


def test_many_loops_and_threads(served: AsyncEngine) -> None:
    texts: dict[int, list[int]] = {}

    def work(number: int) -> None:
        stream = served.submit([5, 6, number], SamplingParams(mode="ar", max_tokens=9))
        texts[number] = asyncio.run(whole(stream))[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(8):
        request = served.engine.request([5, 6, number], SamplingParams(mode="ar", max_tokens=9))
        assert texts[number] == expected(request)


def test_leaving_in_any_way_aborts(served: AsyncEngine) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(whole(served.submit([5, 6], ENDLESS)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def closed() -> None:
        stream = served.submit([5, 6], ENDLESS)
        await anext(stream)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    async def left() -> None:
        async with served.submit([5, 6], ENDLESS) as stream:
            async for _ in stream:
                break

    async def timed_out() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await whole(served.submit([5, 6], ENDLESS))

    async def never_read() -> None:
        served.submit([5, 6], ENDLESS)
        gc.collect()

    async def from_elsewhere() -> None:
        stream = served.submit([5, 6], ENDLESS)
        threading.Timer(0.02, stream.abort).start()
        assert sum([len(update.tokens) async for update in stream]) < 240

    for leave in (cancelled, closed, left, timed_out, never_read, from_elsewhere):
        asyncio.run(leave())
        until(lambda: free(served))
        served.engine.check_integrity()


def test_an_aborted_request_takes_no_further_step(served: AsyncEngine) -> None:
    stream = served.submit([5, 6], ENDLESS)
    request = stream._mailbox.request
    until(lambda: len(request.completion) > 3)
    stream.abort()
    gained = len(request.completion)
    until(lambda: free(served))
    assert len(request.completion) <= gained + 1  # of the step that was under way
    assert request.finish_reason == "abort"


def test_errors_reach_the_reader(served: AsyncEngine) -> None:
    with pytest.raises(InputError):
        served.submit([], ENDLESS)

    async def main() -> None:
        healthy = asyncio.create_task(whole(served.submit([5, 6, 7], SamplingParams(mode="ar", max_tokens=9))))
        with pytest.raises(RequestFailedError, match="NaN"):
            await whole(served.submit([5, POISON], ENDLESS))
        assert (await healthy)[1].finish_reason in ("stop", "length")

    asyncio.run(main())


def test_a_second_reader_is_refused(served: AsyncEngine) -> None:
    async def main() -> None:
        stream = Stream(_Mailbox(served.engine.request([5], ENDLESS), queue.SimpleQueue(), lambda: 0.0))
        reader = asyncio.create_task(collect(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="being read already"):
            await anext(stream)
        stream.abort()
        assert await reader == []

    asyncio.run(main())


def test_a_deadline_is_an_end_like_any_other(served: AsyncEngine) -> None:
    tokens, last = asyncio.run(whole(served.submit([5, 6], ENDLESS.model_copy(update={"deadline": 0.02}))))
    assert last.finish_reason == "deadline"
    assert len(tokens) < 240


def test_a_full_queue_refuses_at_once() -> None:
    served = AsyncEngine(Engine(MODEL, EngineConfig(max_requests=1, max_waiting=1)))
    streams = list[Stream]()

    def flood() -> None:
        for _ in range(10):
            streams.append(served.submit([5, 6], ENDLESS))

    with pytest.raises(QueueFullError):
        flood()
    assert 1 <= len(streams) <= 3  # one runs, one waits, one may be on its way from the queue to its slot
    served.close(drain=False)


def test_close_drains() -> None:
    served = AsyncEngine(Engine(MODEL))
    streams = [served.submit([5, 6, n], SamplingParams(mode="ar", max_tokens=30, ignore_eos=True)) for n in range(5)]
    served.close()
    served.close()
    for stream in streams:
        assert len(asyncio.run(whole(stream))[0]) == 30
    with pytest.raises(EngineStoppedError, match="closed"):
        served.submit([5], ENDLESS)
    assert free(served)


def test_close_aborts_even_while_another_close_drains() -> None:
    served = AsyncEngine(Engine(MODEL))
    streams = [served.submit([5, 6, n], ENDLESS) for n in range(5)]
    draining = threading.Thread(target=served.close)
    draining.start()
    served.close(drain=False)
    draining.join(20)
    assert not draining.is_alive()
    for stream in streams:
        with pytest.raises(EngineStoppedError):
            asyncio.run(whole(stream))
    assert free(served)


def test_a_crash_fails_all_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    served = AsyncEngine(Engine(MODEL, EngineConfig(max_requests=1)))
    streams = [served.submit([5, 6, n], ENDLESS) for n in range(3)]
    until(lambda: streams[0]._mailbox.request.completion)

    def crash(*_: Any, **__: Any) -> Any:
        raise SystemError("the device is gone")

    monkeypatch.setattr(served.engine.scheduler, "schedule", crash)
    for stream in streams:
        with pytest.raises(EngineStoppedError, match="SystemError: the device is gone"):
            asyncio.run(whole(stream))
    served._thread.join(20)
    with pytest.raises(EngineStoppedError, match="broke down"):
        served.submit([5], ENDLESS)
    served.close()


def test_errands_run_between_steps(served: AsyncEngine) -> None:
    async def main() -> None:
        stream = served.submit([5, 6, 7], ENDLESS)
        thread = await served.run(threading.current_thread)
        assert thread is served._thread
        with pytest.raises(ZeroDivisionError):
            await served.run(lambda: 1 / 0)
        tokens, _ = await whole(stream)
        assert len(tokens) == 240

    asyncio.run(main())
    served.close()

    async def late() -> None:
        with pytest.raises(EngineStoppedError):
            await served.run(threading.current_thread)

    asyncio.run(late())


def test_errands_fail_with_the_engine(served: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, going = threading.Event(), threading.Event()

    def stall() -> None:
        begun.set()
        going.wait()

    def breaking(_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(served.engine, "submit", breaking)

    async def main() -> None:
        first = asyncio.create_task(served.run(stall))
        await asyncio.to_thread(begun.wait)
        stream = served.submit([5, 6, 7], ENDLESS)
        behind = asyncio.create_task(served.run(threading.current_thread))
        await asyncio.sleep(0.01)
        going.set()
        await first
        for waiting in (behind, whole(stream)):
            with pytest.raises(EngineStoppedError, match="broke down"):
                await waiting

    asyncio.run(main())


def test_expected_text_reaches_the_engine(served: AsyncEngine) -> None:
    async def main() -> None:
        params = SamplingParams(max_tokens=30, ignore_eos=True)
        tokens, plain = await whole(served.submit([5, 6, 7], params))
        again, copied = await whole(served.submit([5, 6, 7], params, expected=tokens))
        assert again == tokens
        assert copied.forwards == 1 < plain.forwards

    asyncio.run(main())


def test_a_pace_spares_the_reader_and_delays_neither_beginning_nor_end() -> None:
    served = AsyncEngine(Engine(MODEL))
    ask = SamplingParams(mode="ar", max_tokens=60, ignore_eos=True)

    async def reads(pace: float) -> tuple[int, list[int]]:
        count, tokens = 0, []
        async for update in served.submit([5, 6, 7], ask, pace=pace):
            count, tokens = count + 1, tokens + update.tokens
        return count, tokens

    often, all_tokens = asyncio.run(reads(0.0))
    begin = time.monotonic()
    seldom, same = asyncio.run(reads(1e6))
    assert time.monotonic() - begin < 60
    assert same == all_tokens
    assert seldom == 2 < often  # the first and the last
    some, same = asyncio.run(reads(0.01))
    assert same == all_tokens
    assert some <= often
    served.close()


def test_a_crowd_is_woken_together_and_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "READERS", 2)
    served = AsyncEngine(Engine(MODEL))

    async def main() -> None:
        for count, pace in ((1, 1000.0), (2, 1000.0), (3, 2000.0)):
            streams = [served.submit([5, 6, 7], ENDLESS, pace=1000.0) for _ in range(count)]
            while len(served._live) < count:
                await asyncio.sleep(0.001)
            due = []
            for stream in streams:
                await anext(stream)
                due.append(stream._mailbox._due)
            assert len(set(due)) == 1
            assert due[0] % pace == 0
            assert 0 < due[0] - time.monotonic() <= pace
            for stream in streams:
                stream.abort()
            while served._live:
                await asyncio.sleep(0.001)

    asyncio.run(main())
    served.close()
