"""What one forward costs here, through the engine as it serves, beside the floor that memory sets.

Over Q positions: the last committed token and, for Q > 1, a noisy group of Q − 1 behind it, with the head over all Q.
The floor is the time that reading the weights takes at the speed of a plain copy.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openmercury.engine.engine import WIDEST, Engine
from openmercury.engine.modes import Shape
from openmercury.engine.params import DecodeMode, SamplingParams
from openmercury.engine.policy import FULL_ROWS, MOST_STEPS
from openmercury.engine.stats import EngineStats
from openmercury.errors import InputError
from openmercury.model.transformer import RMSNorm, Transformer

FORWARDS = 50
WARM_UP = 10  # forwards before the measured ones: the first captures the graph
COPIED_BYTES = {"cuda": 1 << 31, "cpu": 1 << 28}
COPIES = 10


@dataclass(frozen=True)
class ForwardTime:
    """One forward of one request: median milliseconds, and the least that reading `weight_bytes` takes."""

    positions: int
    context: int
    ms: float
    floor_ms: float
    weight_bytes: int


@dataclass(frozen=True)
class Simulated:
    """Forwards of a network that has learned nothing, and the speed it would have at an assumed TPF.

    `forward_ms` is device time, `forwards_per_second` counts all time.
    """

    mode: str
    concurrency: int
    context: int
    width: int
    forward_ms: float
    forwards_per_second: float
    simulated_tpf: float
    simulated_tokens_per_second: float
    share_idle: float


def weight_bytes(model: Transformer, *, noisy: bool) -> int:
    """Bytes of weights that a forward reads, as they are held: all matrices with the scales of their rows, the head's
    too, and the adapter's where there is noise."""
    parts = [*model.layers, model.head, *([model.adapter] if noisy and model.adapter is not None else [])]
    modules = [module for part in parts for module in part.modules() if not isinstance(module, RMSNorm)]
    held = [getattr(module, name, None) for module in modules for name in ("weight", "scale", "a", "b")]
    return sum(x.numel() * x.itemsize for x in held if isinstance(x, Tensor))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of one large copy within the device's memory: the best of some."""
    source = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(COPIES):
        _settle(device)
        begin = time.perf_counter()
        target.copy_(source)
        _settle(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * source.numel() / best


def _steps(engine: Engine, rows: int) -> int:
    """Forwards at most before the host looks."""
    asked = engine.config.steps_per_sync
    return asked if asked != "auto" else MOST_STEPS if rows >= FULL_ROWS else 1


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_times(engine: Engine, positions: Sequence[int], bandwidth: float, context: int) -> Iterator[ForwardTime]:
    """Device time of a forward of one request with `context` tokens, for each number of positions (1 to 128)."""
    stats = engine.record()
    for count in positions:
        if not 1 <= count <= WIDEST:
            raise InputError(f"a forward over {count} positions was asked for: use 1 to {WIDEST}")
        run_forwards(engine, stats, "ar" if count == 1 else "diffusion", count, 1, context)
        read = weight_bytes(engine.model, noisy=count > 1)
        ms = 1e3 * statistics.median(stats.step_seconds("decode")) / _steps(engine, 1)
        yield ForwardTime(count, context, ms, 1e3 * read / bandwidth, read)


def simulate(engine: Engine, mode: DecodeMode, rows: int, context: int, tpf: float) -> Simulated:
    """Time the forwards of `rows` requests with `context` tokens each; tokens are counted as `tpf` a forward."""
    stats = engine.record()
    width, wall = run_forwards(engine, stats, mode, None, rows, context)
    report = stats.report(wall)
    per_second = report.decode_forwards / wall
    return Simulated(
        mode=mode,
        concurrency=rows,
        context=context,
        width=width,
        forward_ms=1e3 * report.decode_seconds / report.decode_forwards,
        forwards_per_second=per_second,
        simulated_tpf=tpf,
        simulated_tokens_per_second=tpf * rows * per_second,
        share_idle=report.idle,
    )


def run_forwards(
    engine: Engine, stats: EngineStats, mode: DecodeMode, width: int | None, rows: int, context: int
) -> tuple[int, float]:
    """Decode `rows` random prompts of `context` tokens for about `FORWARDS` forwards, after some that are not counted.

    In `diffusion` nothing but the free prediction is accepted, so that blocks stay wide; the width None is the one
    that requests get. Returns the width and the wall time; `stats` hold the rest.
    """
    threshold = 1.0 if mode == "diffusion" else None
    params = SamplingParams(mode=mode, ignore_eos=True, threshold=threshold)
    wide = 1 if mode == "ar" else width or engine.request([1], params).width
    gain = 2 if mode == "diffusion" else Shape(mode, wide).most_committed
    steps = _steps(engine, rows)
    most = WIDEST + gain * (WARM_UP + FORWARDS + 5 * steps)
    if context + most > engine.model.config.max_context:
        raise InputError(f"a context of {context} leaves no room to decode {most} tokens: use a smaller one")
    room = engine.scheduler.pool.capacity * engine.config.page_size
    if rows * (context + most) > room:
        raise InputError(
            f"{rows} requests of {context + most} tokens do not fit into a KV cache of {room}: ask for fewer"
        )
    params = params.model_copy(update={"max_tokens": most})
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, engine.model.config.vocab_size - 1, (rows, context), generator=generator).tolist()
    requests = [engine.request(prompt, params) for prompt in prompts]
    for request in requests:
        request.width = wide
    visits = engine.generate(requests)
    while min(request.forwards for request in requests) < WARM_UP:
        next(visits)
    stats.reset()
    begin = time.perf_counter()
    for _ in itertools.islice(visits, -(-FORWARDS // steps)):
        pass
    _settle(engine.runner.device)  # the step still under way is measured, too
    wall = time.perf_counter() - begin
    for request in requests:
        request.finish_reason = "stop"
    for _ in visits:
        pass
    return wide, wall
