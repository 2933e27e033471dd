"""The arithmetic of `bench`, on a clockwork model that answers in known steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from openmercury.engine.params import SamplingParams
from openmercury.engine.stats import Report
from openmercury.eval import speed
from openmercury.llm import Output, Usage

TICK = 0.010


class ClockworkStats:
    """Nine of ten milliseconds of a forward go into the network and the head, 8 : 1."""

    def __init__(self, llm: ClockworkLLM) -> None:
        self.llm = llm

    def reset(self) -> None:
        self.llm.forwards = 0

    def report(self, wall: float) -> Report:
        busy = 0.9 * TICK * self.llm.forwards
        return Report(
            decode_forwards=self.llm.forwards,
            decode_seconds=busy,
            prefill_seconds=0.0,
            forward=8 / 9 * busy / wall,
            head=busy / wall / 9,
            host=0.05,
            idle=1 - busy / wall,
            kv_peak=0.5,
            kv_mean=0.25,
            captures=0,
        )


class ClockworkLLM:
    """Two tokens a forward, six an answer, a forward a tick; up to `concurrency` requests share each forward."""

    def __init__(self, device: str = "cuda") -> None:
        self.device, self.now, self.forwards = device, 0.0, 0
        self.sent: list[tuple[int, list[int]]] = []  # requests and their max_tokens, of each pass
        self.warmed: list[tuple[int, str]] = []

    def warm_up(self, requests: int, params: SamplingParams) -> None:
        self.warmed.append((requests, params.mode))

    def record(self) -> ClockworkStats:
        return ClockworkStats(self)

    def generate_batch(
        self, prompts: Any, params: Any, on_progress: Any = None, *, concurrency: int | None = None,
        arrivals: Any = None, on_tokens: Callable[[int, int], None] | None = None,
    ) -> list[Output]:  # fmt: skip
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        self.sent.append((len(prompts), [one.max_tokens for one in each]))
        begin, waiting, running = self.now, list(range(len(prompts))), dict[int, int]()
        while waiting or running:
            while waiting and len(running) < (concurrency or len(prompts)):
                if arrivals is not None and begin + arrivals[waiting[0]] > self.now:
                    break
                running[waiting.pop(0)] = 0
            self.now += TICK
            self.forwards += bool(running)
            for index in list(running):
                running[index] += 2
                if on_tokens is not None:
                    on_tokens(index, running[index])
                if running[index] == 6:
                    del running[index]
        return [Output("", "stop", each[0].mode, Usage(1, 6, 3, 0.03), (1,) * 6) for _ in prompts]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> ClockworkLLM:
    made = ClockworkLLM()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: made.now)
    return made


def bench(llm: ClockworkLLM) -> speed.Bench:
    return speed.Bench(llm, [[1], [2]])  # type: ignore[arg-type]


def test_a_closed_loop_of_one(llm: ClockworkLLM) -> None:
    found = bench(llm).closed(SamplingParams(mode="ar"), 1, 3)
    assert llm.sent == [(3, [512] * 3)]
    assert (found.tokens, found.forwards, found.tpf, found.rows_per_forward) == (18, 9, 2.0, 1.0)
    assert (found.tokens_per_second, found.request_tokens_per_second) == pytest.approx((200, 200))
    assert (found.first_ms_p95, found.between_ms_p50, found.latency_ms_p95) == pytest.approx((10, 10, 30))
    assert found.forwards_per_second == pytest.approx(1 / 0.009)
    assert found.explained == pytest.approx(0.9)  # a tenth of the time was not in forwards
    assert found.share_forward + found.share_head + found.share_idle == pytest.approx(1)


def test_the_steady_window_leaves_out_the_tail(llm: ClockworkLLM) -> None:
    """Four requests, three at once: full from the first tick on, the last one is sent at the third and runs alone."""
    found = bench(llm).closed(SamplingParams(mode="ar"), 3, 4)
    assert found.seconds == pytest.approx(0.06)
    assert found.tokens_per_second == pytest.approx(24 / 0.06)
    assert found.steady_tokens_per_second == pytest.approx(12 / 0.02)
    assert found.rows_per_forward == pytest.approx(2.0)


def test_there_is_no_steady_state_when_all_are_sent_at_once(llm: ClockworkLLM) -> None:
    assert bench(llm).closed(SamplingParams(mode="ar"), 3, 2).steady_tokens_per_second is None


def test_an_open_loop_counts_from_arrival(llm: ClockworkLLM) -> None:
    """Rare arrivals start at the next tick; their latency is what they wait for it and three forwards."""
    found = bench(llm).open(SamplingParams(mode="ar"), 5.0, 40, seed=1)
    assert (found.rate, found.concurrency, found.steady_tokens_per_second) == (5.0, None, None)
    assert 40 / 5 * 0.6 < found.seconds < 40 / 5 * 1.6
    assert 10 <= found.first_ms_p50 <= found.first_ms_p95 <= 20 + 1e-6
    assert 30 <= found.latency_ms_p50 <= 40 + 1e-6
    again = bench(llm).open(SamplingParams(mode="ar"), 5.0, 40, seed=2)
    assert again.seconds != found.seconds


def test_the_pass_before_is_short_and_frays(llm: ClockworkLLM) -> None:
    bench(llm).warm_up(SamplingParams(mode="ar", max_tokens=100), 8)
    [(count, lengths)] = llm.sent
    assert count == 16
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1], len(set(lengths[-8:]))) == (8, 100, 5)
    bench(llm).warm_up(SamplingParams(mode="auto"), 8)
    assert llm.warmed == [(8, "ar"), (8, "auto")]
    without_graphs = ClockworkLLM("cpu")
    bench(without_graphs).warm_up(SamplingParams(mode="ar"), 8)
    assert without_graphs.sent == [(1, [8])]


def test_percentiles_are_values_that_occurred() -> None:
    assert [speed.percentile([3.0, 1.0, 2.0], share) for share in (1, 50, 95)] == [1.0, 2.0, 3.0]
