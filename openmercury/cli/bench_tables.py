"""The tables that `bench` prints: for each its columns with their widths, and how a row fills them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openmercury.cli.bench_http import Served
    from openmercury.engine.probe import ForwardTime, Simulated
    from openmercury.eval.baseline import Baseline
    from openmercury.eval.speed import Speed

Columns = tuple[tuple[str, int], ...]

SPEED: Columns = (
    ("mode", 14), ("load", 10), ("tok/s", 10), ("steady", 10), ("per request", 13), ("× ar", 7), ("TPF", 7),
    ("first ms p50/p95", 19), ("between ms p50/p95/p99", 25), ("answer ms p50/p95", 19),
)  # fmt: skip
TIME: Columns = (
    ("mode", 11), ("load", 10), ("forwards/s", 12), ("rows", 8), ("explained", 11), ("forward", 9), ("head", 8),
    ("idle", 8), ("host", 8), ("KV peak/mean", 14), ("captures", 8),
)  # fmt: skip
SERVED: Columns = (
    ("mode", 11), ("load", 10), ("tok/s", 10), ("over HTTP", 11), ("share", 8), ("CPU µs a token", 16),
    ("over HTTP", 11), ("chunks/s", 10), ("first byte ms p50/p95", 23), ("first text ms", 18), ("answer ms", 12),
)  # fmt: skip
SIMULATED: Columns = (
    ("mode", 11), ("at once", 9), ("width", 7), ("ms/forward", 12), ("forwards/s", 12), ("simulated TPF", 15),
    ("simulated tok/s", 17), ("idle", 6),
)  # fmt: skip
FORWARD: Columns = (
    ("positions", 11), ("ms", 9), ("× first", 9), ("weights MB", 12), ("floor ms", 10), ("× floor", 8),
)  # fmt: skip


def line(columns: Columns, cells: Sequence[str] | None = None) -> str:
    """One line of a table; without cells its header."""
    shown = [name for name, _ in columns] if cells is None else cells
    return "".join(cell.ljust(width) for cell, (_, width) in zip(shown, columns, strict=True)).rstrip()


def speed_cells(row: Speed, rows: Sequence[Speed]) -> list[str]:
    """`rows` hold the row of mode `ar` under the same load, if there is one."""
    same = (one for one in rows if one.mode == "ar" and (one.concurrency, one.rate) == (row.concurrency, row.rate))
    base = next(same, None)
    return [
        row.mode,
        _load(row),
        f"{row.tokens_per_second:.1f}",
        "–" if row.steady_tokens_per_second is None else f"{row.steady_tokens_per_second:.1f}",
        f"{row.request_tokens_per_second:.1f}",
        "–" if base is None else f"{row.tokens_per_second / base.tokens_per_second:.2f}",
        f"{row.tpf:.2f}",
        f"{row.first_ms_p50:.1f}/{row.first_ms_p95:.1f}",
        f"{row.between_ms_p50:.2f}/{row.between_ms_p95:.2f}/{row.between_ms_p99:.2f}",
        f"{row.latency_ms_p50:.0f}/{row.latency_ms_p95:.0f}",
    ]


def baseline_cells(row: Baseline) -> list[str]:
    """Plain decoding elsewhere: one request at a time, one token a forward."""
    return [row.name, "1", f"{row.tokens_per_second:.1f}", "–", "–", "–", "1.00", "–", "–", "–"]


def time_cells(row: Speed) -> list[str]:
    """Where the time went."""
    return [
        row.mode,
        _load(row),
        f"{row.forwards_per_second:.1f}",
        f"{row.rows_per_forward:.1f}",
        f"{row.explained:.1%}",
        f"{row.share_forward:.1%}",
        f"{row.share_head:.1%}",
        f"{row.share_idle:.1%}",
        f"{row.share_host:.1%}",
        f"{row.kv_peak:.1%}/{row.kv_mean:.1%}",
        str(row.captures),
    ]


def served_cells(row: Served) -> list[str]:
    """One loop without HTTP and over it."""
    return [
        row.mode,
        str(row.concurrency),
        f"{row.direct_tokens_per_second:.1f}",
        f"{row.tokens_per_second:.1f}",
        f"{row.share:.1%}",
        f"{row.direct_cpu_us:.0f}",
        f"{row.cpu_us:.0f}",
        f"{row.chunks / row.seconds:.0f}",
        f"{row.first_byte_ms_p50:.1f}/{row.first_byte_ms_p95:.1f}",
        f"{row.first_text_ms_p50:.1f}/{row.first_text_ms_p95:.1f}",
        f"{row.answer_ms_p50:.0f}/{row.answer_ms_p95:.0f}",
    ]


def simulated_cells(row: Simulated) -> list[str]:
    """One mode of a network of random weights."""
    return [
        row.mode,
        str(row.concurrency),
        str(row.width),
        f"{row.forward_ms:.3f}",
        f"{row.forwards_per_second:.1f}",
        f"{row.simulated_tpf:.2f}",
        f"{row.simulated_tokens_per_second:.1f}",
        f"{row.share_idle:.1%}",
    ]


def forward_cells(row: ForwardTime, first_ms: float) -> list[str]:
    """One number of positions."""
    return [
        str(row.positions),
        f"{row.ms:.3f}",
        f"{row.ms / first_ms:.2f}",
        f"{row.weight_bytes / 1e6:,.0f}",
        f"{row.floor_ms:.3f}",
        f"{row.ms / row.floor_ms:.2f}",
    ]


def _load(row: Speed) -> str:
    return f"{row.rate:g}/s" if row.concurrency is None else str(row.concurrency)
