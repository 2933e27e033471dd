"""Pictures: speed against concurrency, one line for each mode; quality against parallelism and speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openmercury.errors import ConfigError
from openmercury.eval.frontier import AXES, Frontier, pareto
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


def draw_frontier(path: Path, whole: Frontier) -> None:
    """pass@1 with its interval against TPF on the left, against tokens per second on the right; a curve a system.

    The grey line joins the points that none beats in both. The text of an SVG stays text.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (name, of), what in zip(
        figure.subplots(1, 2, sharey=True), AXES.items(), ("tokens per forward", "tokens per second"), strict=True
    ):
        for curve in whole.curves:
            told = [(x, one) for one in whole.points if one.system == curve.system and (x := of(one)) is not None]
            told.sort(key=lambda pair: pair[0])
            heights = [100 * one.pass_at_1 for _, one in told]
            spread = [
                [100 * (one.pass_at_1 - one.low) for _, one in told],
                [100 * (one.high - one.pass_at_1) for _, one in told],
            ]
            axes.errorbar(
                [x for x, _ in told], heights, spread, marker="o", capsize=3, elinewidth=0.8, label=curve.system
            )
        front = pareto(whole.points, of)
        axes.plot(
            [of(one) for one in front],
            [100 * one.pass_at_1 for one in front],
            color="grey",
            linewidth=5,
            alpha=0.3,
            zorder=0,
        )
        axes.set(xlabel=what, xscale="linear" if name == "tpf" else "log")
        axes.grid(alpha=0.3)
        if name == "tpf":
            axes.set(ylabel="pass@1 in %")
            figure.legend(loc="outside lower center", ncols=4)
    hardware = sorted({one.hardware for one in whole.points if one.hardware})
    figure.suptitle(f"{whole.task}, {'; '.join(hardware)}" if hardware else whole.task)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(path, dpi=150)
