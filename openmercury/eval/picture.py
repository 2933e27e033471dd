"""Speed against concurrency as a picture, one line for each mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openmercury.errors import ConfigError
from openmercury.eval.speed import Speed

KINDS = (".png", ".svg")


def check(path: Path) -> None:
    """Raise ConfigError where no picture could be drawn: before anything is measured."""
    if path.suffix not in KINDS:
        raise ConfigError(f"--picture {path} should end in {' or '.join(KINDS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("--picture needs matplotlib: pip install 'openmercury[bench]'") from None


def draw(path: Path, rows: Sequence[Speed], title: str, baseline: float | None = None) -> None:
    """Tokens per second of the closed loops on the left, of one request on the right; `baseline` as a dashed line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    total, each = figure.subplots(1, 2)
    for mode in dict.fromkeys(row.mode for row in rows):
        closed = sorted(
            (row.concurrency, row.tokens_per_second, row.request_tokens_per_second)
            for row in rows
            if row.mode == mode and row.concurrency is not None
        )
        levels = [one[0] for one in closed]
        total.plot(levels, [one[1] for one in closed], marker="o", label=mode)
        each.plot(levels, [one[2] for one in closed], marker="o", label=mode)
    for axes, what in ((total, "output tokens per second, all requests"), (each, "tokens per second of one request")):
        if baseline is not None:
            axes.axhline(baseline, linestyle="--", color="grey", label="transformers, one request")
        axes.set(xlabel="requests at once", title=what, xscale="log", yscale="log")
        axes.set_xticks(levels_of(rows), [str(level) for level in levels_of(rows)])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    total.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def levels_of(rows: Sequence[Speed]) -> list[int]:
    """Concurrencies that were measured, ascending."""
    return sorted({row.concurrency for row in rows if row.concurrency is not None})
