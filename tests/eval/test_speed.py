"""The arithmetic of `bench`, on a clockwork model that answers in known steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from openmercury.engine.params import SamplingParams
from openmercury.eval import speed
from openmercury.llm import Output, Usage


class ClockworkLLM:
    """Two tokens a forward, a forward a 10 ms; one request after the other."""

    def __init__(self) -> None:
        self.now = 0.0
        self.passes = 0

    def generate_batch(
        self, prompts: Any, params: SamplingParams, on_progress: Any = None, *, concurrency: int,
        on_tokens: Callable[[int, int], None],
    ) -> list[Output]:  # fmt: skip
        self.passes += 1
        for index in range(len(prompts)):
            for tokens in (2, 4, 6):
                self.now += 0.010
                on_tokens(index, tokens)
        usage = Usage(len(prompts[0]), 6, 3, 0.03)
        return [Output("", "stop", params.mode, usage, (1,) * 6) for _ in prompts]


def test_a_closed_loop_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = ClockworkLLM()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: llm.now)
    found = speed.measure(llm, [[1], [2], [3]], SamplingParams(mode="ar"), 1)  # type: ignore[arg-type]
    assert llm.passes == 2
    assert (found.tokens, found.forwards, found.tpf) == (18, 9, 2.0)
    assert found.tokens_per_second == pytest.approx(200)
    assert found.request_tokens_per_second == pytest.approx(200)
    assert found.first_ms_p95 == pytest.approx(10)
    assert found.between_ms_p50 == pytest.approx(10)


def test_percentiles_are_values_that_occurred() -> None:
    assert [speed.percentile([3.0, 1.0, 2.0], share) for share in (1, 50, 95)] == [1.0, 2.0, 3.0]
