"""How fast a checkpoint answers under load, and what was measured: closed loops and open loops of real prompts.

Closed: a number of clients, each sends its next prompt when its last answer is complete. Open: prompts come at random
moments of a given rate, whatever is under way. Everything counts: reading prompts, scheduling and text. A short pass
before lets the engine capture its graphs; the prefix cache should be off, so that every prompt is read.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmercury.engine.params import SamplingParams
    from openmercury.llm import LLM

Seen = list[tuple[float, int]]  # when new tokens of a request appeared, and how many it had then
Progress = Callable[[int, int], None]

WARM_UP_TOKENS = range(8, 136)  # answers of the pass before differ in length, so that it ends with ever fewer rows


@dataclass(frozen=True)
class Speed:
    """One mode under one load: `concurrency` clients, or `rate` prompts per second. Latencies in milliseconds.

    `steady_tokens_per_second` counts from when all clients have tokens to when the last prompt is sent, None where
    that never was. `request_tokens_per_second`: median over requests of tokens ÷ (end − the first token's appearance).
    `tpf`: tokens ÷ forwards of requests, `rows_per_forward` requests in a forward, `forwards_per_second` forwards ÷
    device seconds of forwards. `explained` = tokens per second ÷ (tpf · rows_per_forward · forwards_per_second): what
    is missing to 1 went into reading prompts and overhead. `cpu_seconds`: processor time of this process.

    `first`: from when a prompt was sent (or came) to its first settled tokens, `between`: from tokens to the next,
    `latency`: to the end. `kv_*`: share of the pages of the KV cache. `share_*` of wall time: see `engine.stats`.
    """

    mode: str
    concurrency: int | None
    rate: float | None
    requests: int
    tokens: int
    forwards: int
    seconds: float
    cpu_seconds: float
    tokens_per_second: float
    steady_tokens_per_second: float | None
    request_tokens_per_second: float
    tpf: float
    forwards_per_second: float
    rows_per_forward: float
    explained: float
    first_ms_p50: float
    first_ms_p95: float
    between_ms_p50: float
    between_ms_p95: float
    between_ms_p99: float
    latency_ms_p50: float
    latency_ms_p95: float
    kv_peak: float
    kv_mean: float
    share_forward: float
    share_head: float
    share_host: float
    share_idle: float
    captures: int


class Bench:
    """Sends prompts to one LLM, cycling through them."""

    def __init__(self, llm: LLM, prompts: Sequence[Sequence[int]]) -> None:
        self.llm, self.prompts, self.stats = llm, prompts, llm.record()

    def warm_up(self, params: SamplingParams, concurrency: int) -> None:
        """Graphs, and two short answers a client, so that all numbers of rows occur; for a CPU one is enough."""
        self.llm.warm_up(concurrency, params)
        sent = self._sent(1 if self.llm.device == "cpu" else 2 * concurrency)
        spread = [WARM_UP_TOKENS[number * len(WARM_UP_TOKENS) // len(sent)] for number in range(len(sent))]
        each = [params.model_copy(update={"max_tokens": min(most, params.max_tokens)}) for most in spread]
        self.llm.generate_batch(sent, each, concurrency=concurrency)

    def closed(
        self, params: SamplingParams, concurrency: int, requests: int, on_progress: Progress | None = None
    ) -> Speed:
        """Answer `requests` prompts, `concurrency` at a time."""
        return self._measure(params, requests, on_progress, concurrency=concurrency)

    def open(
        self, params: SamplingParams, rate: float, requests: int, seed: int, on_progress: Progress | None = None
    ) -> Speed:
        """Answer `requests` prompts that come as a Poisson process of `rate` per second."""
        gap = random.Random(seed)
        arrivals = list(itertools.accumulate(gap.expovariate(rate) for _ in range(requests)))
        return self._measure(params, requests, on_progress, rate=rate, arrivals=arrivals)

    def _sent(self, requests: int) -> list[Sequence[int]]:
        return list(itertools.islice(itertools.cycle(self.prompts), requests))

    def _measure(
        self,
        params: SamplingParams,
        requests: int,
        on_progress: Progress | None,
        *,
        concurrency: int | None = None,
        rate: float | None = None,
        arrivals: Sequence[float] | None = None,
    ) -> Speed:
        seen: list[Seen] = [[] for _ in range(requests)]

        def on_tokens(index: int, tokens: int) -> None:
            if not seen[index] or seen[index][-1][1] < tokens:
                seen[index].append((time.perf_counter(), tokens))

        sent = self._sent(requests)
        self.stats.reset()
        begin, cpu = time.perf_counter(), time.process_time()
        outputs = self.llm.generate_batch(
            sent, params, on_progress, concurrency=concurrency, arrivals=arrivals, on_tokens=on_tokens
        )
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        for output in outputs:
            if output.error is not None:
                raise output.error
        report = self.stats.report(seconds)
        steady = None
        if arrivals is not None:
            starts = [begin + arrival for arrival in arrivals]
        else:
            assert concurrency is not None
            starts = closed_starts(begin, seen, concurrency)
            steady = steady_rate(seen, starts, concurrency)
        first = [1e3 * (one[0][0] - start) for one, start in zip(seen, starts, strict=True)]
        between = [1e3 * (b[0] - a[0]) for one in seen for a, b in itertools.pairwise(one)] or [0.0]
        latency = [1e3 * (one[-1][0] - start) for one, start in zip(seen, starts, strict=True)]
        rates = [(one[-1][1] - one[0][1]) / (one[-1][0] - one[0][0]) for one in seen if len(one) > 1] or [0.0]
        tokens = sum(output.usage.completion_tokens for output in outputs)
        forwards = max(1, sum(output.usage.forwards for output in outputs))
        per_second = report.decode_forwards / max(report.decode_seconds, 1e-9)
        rows = forwards / max(1, report.decode_forwards)
        return Speed(
            mode=params.mode,
            concurrency=concurrency,
            rate=rate,
            requests=requests,
            tokens=tokens,
            forwards=forwards,
            seconds=seconds,
            cpu_seconds=cpu,
            tokens_per_second=tokens / seconds,
            steady_tokens_per_second=steady,
            request_tokens_per_second=statistics.median(rates),
            tpf=tokens / forwards,
            forwards_per_second=per_second,
            rows_per_forward=rows,
            explained=tokens / seconds / max(tokens / forwards * rows * per_second, 1e-9),
            first_ms_p50=percentile(first, 50),
            first_ms_p95=percentile(first, 95),
            between_ms_p50=percentile(between, 50),
            between_ms_p95=percentile(between, 95),
            between_ms_p99=percentile(between, 99),
            latency_ms_p50=percentile(latency, 50),
            latency_ms_p95=percentile(latency, 95),
            kv_peak=report.kv_peak,
            kv_mean=report.kv_mean,
            share_forward=report.forward,
            share_head=report.head,
            share_host=report.host,
            share_idle=report.idle,
            captures=report.captures,
        )


def closed_starts(begin: float, seen: Sequence[Seen], concurrency: int) -> list[float]:
    """When each prompt was sent: the first `concurrency` at once, the k-th behind them when the k-th answer ended."""
    ends = sorted(one[-1][0] for one in seen)
    return [begin] * min(concurrency, len(seen)) + ends[: max(0, len(seen) - concurrency)]


def steady_rate(seen: Sequence[Seen], starts: Sequence[float], concurrency: int) -> float | None:
    """Tokens per second from when the first `concurrency` requests all have tokens to when the last prompt is sent."""
    opened, closed = max(one[0][0] for one in seen[:concurrency]), starts[-1]
    if closed <= opened:
        return None
    tokens = sum(_tokens_at(one, closed) - _tokens_at(one, opened) for one in seen)
    return tokens / (closed - opened)


def _tokens_at(seen: Seen, moment: float) -> int:
    return max((tokens for when, tokens in seen if when <= moment), default=0)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * int(share) // 100) - 1))]
