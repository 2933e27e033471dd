"""Where the time of a run goes: an opt-in recorder that the engine and its runner feed. Off, it is None.

Host parts are seconds of `perf_counter`. Device parts are times around each step, from the plan to the committed
tokens: on CUDA two events that are recorded without waiting and read at the end, on a CPU the clock. The head is timed
within a step; but a CUDA graph would be disturbed by events inside, so there each graph that matters is captured once
more when a run is over, and its head, whose cost depends on its shape alone, is timed in that copy.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

HostPart = Literal["schedule", "launch", "read", "wait", "text"]
Step = Literal["prefill", "decode"]
Pair = tuple[torch.cuda.Event, torch.cuda.Event]

OFF = contextlib.nullcontext()
COMMON = 0.05  # share of the replays from which a graph's head is timed


@dataclass(frozen=True)
class Report:
    """One run. Shares are of wall time; forward + head + idle = 1.

    `idle`: no step is under way, the engine's overhead. `host`: scheduling, launching, reading results and text; on
    CUDA it runs beside the steps, on a CPU it is part of `idle`. `kv_peak`, `kv_mean`: pages held ÷ pages there are,
    over steps. `captures`: CUDA graphs made during the run, which took time from it.
    """

    decode_forwards: int
    decode_seconds: float
    prefill_seconds: float
    forward: float
    head: float
    host: float
    idle: float
    kv_peak: float
    kv_mean: float
    captures: int


class EngineStats:
    """Collects until `reset`."""

    def __init__(self, device: torch.device, replay_apart: Callable[[Hashable], None]) -> None:
        self.cuda, self.replay_apart = device.type == "cuda", replay_apart
        self.head_of: dict[Hashable, float] = {}  # seconds in one replay of a graph
        self.inside: list[Pair] | None = None  # heads of the graph being captured apart
        self.reset()

    def reset(self) -> None:
        """Forget what was measured; what is known of captured graphs stays true."""
        self.host_seconds: defaultdict[HostPart, float] = defaultdict(float)
        self.steps: dict[Step, list[float | Pair]] = {"prefill": [], "decode": []}
        self.heads: list[float | Pair] = []
        self.replays: Counter[Hashable] = Counter()
        self.held: list[float] = []
        self.forwards = 0
        self.captures = 0

    # --- fed by engine and runner ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def host(self, part: HostPart) -> Iterator[None]:
        """Time a part of the host's work."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.host_seconds[part] += time.perf_counter() - begin

    @contextlib.contextmanager
    def step(self, kind: Step, forwards: int = 0, graph: Hashable = None) -> Iterator[None]:
        """Time a step of so many decoding forwards; `graph` names the captured graph that is replayed."""
        with self._device(self.steps[kind]):
            yield
        self.forwards += forwards
        if kind == "decode" and graph is not None:
            self.replays[graph] += 1

    @contextlib.contextmanager
    def head(self) -> Iterator[None]:
        """Time the head of the step under way."""
        if not (self.cuda and torch.cuda.is_current_stream_capturing()):
            with self._device(self.heads):
                yield
        elif self.inside is None:
            yield
        else:
            with self._device(self.inside, external=True):
                yield

    def captured(self) -> None:
        """A graph was made: heads of the passes before its capture belong to no step."""
        self.heads.clear()
        self.captures += 1

    def pages(self, held: int, capacity: int) -> None:
        """Pages of the cache in use at a step."""
        self.held.append(held / capacity)

    @contextlib.contextmanager
    def _device(self, into: list[float | Pair] | list[Pair], *, external: bool = False) -> Iterator[None]:
        if self.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True, external=external) for _ in range(2))
            begin.record()
            yield
            end.record()
            into.append((begin, end))
        else:
            start = time.perf_counter()
            yield
            into.append(time.perf_counter() - start)  # type: ignore[arg-type]  # only `heads` and `steps` on a CPU

    # --- read when a run is over -------------------------------------------------------------------------------------

    def step_seconds(self, kind: Step) -> list[float]:
        """Device seconds of each step so far; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        return [_seconds(one) for one in self.steps[kind]]

    def report(self, wall: float) -> Report:
        """The run so far, which took `wall` seconds; waits for the device."""
        decode, prefill = self.step_seconds("decode"), sum(self.step_seconds("prefill"))
        busy = sum(decode) + prefill
        head = sum(_seconds(one) for one in self.heads)
        head += self._graph_heads()
        spent = self.host_seconds
        host = spent["schedule"] + spent["launch"] + spent["read"] + spent["text"] - spent["wait"]
        if not self.cuda:
            host -= busy  # a launch returns when the step is done
        return Report(
            decode_forwards=self.forwards,
            decode_seconds=sum(decode),
            prefill_seconds=prefill,
            forward=(busy - head) / wall,
            head=head / wall,
            host=host / wall,
            idle=max(0.0, 1 - busy / wall),  # CUDA may still run a last step to no effect when the answers are complete
            kv_peak=max(self.held, default=0.0),
            kv_mean=sum(self.held) / max(1, len(self.held)),
            captures=self.captures,
        )

    def _graph_heads(self) -> float:
        """Seconds in the heads of graphs; those of rare graphs are taken to be as the others'."""
        total = self.replays.total()
        common = {graph: count for graph, count in self.replays.items() if count >= COMMON * total}
        for graph in common:
            if graph not in self.head_of:
                kept, self.inside = self.heads, []
                self.heads = []
                self.replay_apart(graph)
                self.head_of[graph] = sum(map(_seconds, self.inside))
                self.heads, self.inside = kept, None
        seen = sum(common.values())
        return sum(count * self.head_of[graph] for graph, count in common.items()) * total / seen if seen else 0.0


def _seconds(measured: float | Pair) -> float:
    return measured if isinstance(measured, float) else 1e-3 * float(measured[0].elapsed_time(measured[1]))


def timed_host(stats: EngineStats | None, part: HostPart) -> contextlib.AbstractContextManager[None]:
    """`stats.host`, or nothing."""
    return OFF if stats is None else stats.host(part)


def timed_step(
    stats: EngineStats | None, kind: Step, forwards: int = 0, graph: Hashable = None
) -> contextlib.AbstractContextManager[None]:
    """`stats.step`, or nothing."""
    return OFF if stats is None else stats.step(kind, forwards, graph)


def timed_head(stats: EngineStats | None) -> contextlib.AbstractContextManager[None]:
    """`stats.head`, or nothing."""
    return OFF if stats is None else stats.head()
