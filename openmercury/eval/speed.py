"""How fast a checkpoint answers: a closed loop of real prompts at a given concurrency, and what it measured.

Each client sends its next prompt when its last answer is complete. Everything counts: reading prompts, scheduling and
text. A pass before the measured one lets the engine capture its graphs; the prefix cache is off, so that the measured
pass reads every prompt again.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmercury.engine.params import SamplingParams
    from openmercury.llm import LLM


@dataclass(frozen=True)
class Speed:
    """One mode at one concurrency. Latencies in milliseconds; percentiles over requests (first) and gaps (between).

    `between` is the time from one appearance of new tokens of a request to the next, `tpf` tokens ÷ forwards,
    `request_tokens_per_second` the median over requests of tokens ÷ (end − the first token's appearance).
    """

    mode: str
    concurrency: int
    requests: int
    tokens: int
    forwards: int
    seconds: float
    tokens_per_second: float
    request_tokens_per_second: float
    tpf: float
    first_ms_p50: float
    first_ms_p95: float
    between_ms_p50: float
    between_ms_p95: float
    between_ms_p99: float


def measure(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    concurrency: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Speed:
    """Answer all prompts twice and report the second pass."""
    times: list[list[tuple[float, int]]] = []

    def on_tokens(index: int, tokens: int) -> None:
        now = time.perf_counter()
        if not times[index] or times[index][-1][1] < tokens:
            times[index].append((now, tokens))

    outputs = []
    for _ in range(2):
        times[:] = [[] for _ in prompts]
        begin = time.perf_counter()
        outputs = llm.generate_batch(prompts, params, on_progress, concurrency=concurrency, on_tokens=on_tokens)
        seconds = time.perf_counter() - begin
        for output in outputs:
            if output.error is not None:
                raise output.error
    # A client's next request begins when one ends: the k-th to begin after the first wave, when the k-th has ended.
    ends = sorted(seen[-1][0] for seen in times)
    starts = [begin] * min(concurrency, len(prompts)) + ends[: max(0, len(prompts) - concurrency)]
    first = [1e3 * (seen[0][0] - start) for seen, start in zip(times, starts, strict=True)]
    between = [1e3 * (b[0] - a[0]) for seen in times for a, b in itertools.pairwise(seen)] or [0.0]
    rates = [(seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]) for seen in times if len(seen) > 1] or [0.0]
    tokens = sum(output.usage.completion_tokens for output in outputs)
    forwards = sum(output.usage.forwards for output in outputs)
    return Speed(
        mode=params.mode,
        concurrency=concurrency,
        requests=len(prompts),
        tokens=tokens,
        forwards=forwards,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        request_tokens_per_second=statistics.median(rates),
        tpf=tokens / max(1, forwards),
        first_ms_p50=percentile(first, 50),
        first_ms_p95=percentile(first, 95),
        between_ms_p50=percentile(between, 50),
        between_ms_p95=percentile(between, 95),
        between_ms_p99=percentile(between, 99),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * int(share) // 100) - 1))]
