"""What the user sees while a model writes: text as it settles, the denoising in place, spinners.

terminal                                         anywhere else (one line a forward)
settled lines, printed once, for good            [  3] def f(n):\n    |re░░rn░░
┌ the live region, redrawn at each forward ┐
│ settled start of a line, draft, ░░░      │     A model's text is data: control characters never reach the
│ forward 3 · 12 tokens · 4.0 per forward  │     terminal, and nothing in it is read as markup.
└──────────────────────────────────────────┘
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    from openmercury.llm import DraftPiece, Output, Step

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 and C1 but tab and newline: among them ESC and CSI
FRAME_TAIL = 72  # characters of settled text in a plain frame
MASKED, DRAFT, STATUS = "dim", "italic cyan", "dim"


def clean(text: str) -> str:
    """The text without control characters. Works piece by piece: clean(a + b) = clean(a) + clean(b)."""
    return CONTROL.sub("", text)


def print_stream(steps: Iterator[Step], out: TextIO) -> Output:
    """Print settled text as it grows, and end the line."""
    output, shown = None, 0
    for step in steps:
        out.write(clean(step.text[shown:]))
        out.flush()
        output, shown = step.output, len(step.text)
    assert output is not None
    out.write(_line_end(clean(output.text)))
    out.flush()
    return output


def draw_stream(steps: Iterator[Step], console: Console) -> Output:
    """Draw the denoising, in place where `console` is a terminal; the full text is left standing exactly once."""
    in_place = console.is_terminal and not console.is_dumb_terminal and console.height > 2
    return _draw_in_place(steps, console) if in_place else _draw_frames(steps, console)


def print_figures(output: Output) -> None:
    """One closing line on stderr, where somebody watches."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return
    usage = output.usage
    told = f"{usage.completion_tokens} tokens · {usage.forwards} forwards · {usage.tokens_per_forward:.2f} per forward"
    told += f" · {usage.completion_tokens / max(usage.seconds, 1e-9):.1f} tokens/s · mode {output.mode}"
    if output.finish_reason == "length":
        told += " · cut off at --max-tokens"
    if output.finish_reason == "deadline":
        told += " · cut off at --deadline"
    console.print(Text(told, style=STATUS))


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something takes long; yields a function that changes its text. Silent in pipes."""
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda _: None
        return
    with console.status(Text(what)) as status:
        yield lambda told: status.update(Text(told))


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields `advance(finished, total)`. Silent in pipes."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(what, total=total)
        yield lambda finished, total: bar.update(row, completed=finished, total=total)


# --- plain frames ----------------------------------------------------------------------------------------------------


def _draw_frames(steps: Iterator[Step], console: Console) -> Output:
    glyph, out, output = mask_glyph(console), console.file, None
    for step in steps:
        out.write(frame(step, glyph) + "\n")
        out.flush()
        output = step.output
    assert output is not None
    text = clean(output.text)
    out.write(text + _line_end(text))
    out.flush()
    return output


def frame(step: Step, glyph: str) -> str:
    """One forward in one line: number, end of the settled text, draft."""
    settled = _escaped(step.text)
    if len(settled) > FRAME_TAIL:
        settled = "…" + settled[1 - FRAME_TAIL :]
    draft = "".join(glyph if piece.state == "masked" else _escaped(piece.text) for piece in step.draft)
    return f"[{step.forward:3d}] {settled}|{draft}"


def _escaped(text: str) -> str:
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


def mask_glyph(console: Console) -> str:
    """What stands for a masked position."""
    return "." if console.options.ascii_only else "░"


# --- in place --------------------------------------------------------------------------------------------------------


def _draw_in_place(steps: Iterator[Step], console: Console) -> Output:
    """Finished lines are printed above the live region and never touched again, so it stays small and cannot tear."""
    text, printed, output, begin = "", 0, None, time.monotonic()
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            for step in steps:
                text, output = clean(step.text), step.output
                whole = text.rfind("\n") + 1
                live.update(_region(step, text[whole:], console, time.monotonic() - begin))
                with console:  # one write, so that nothing flickers
                    if whole > printed:
                        _print_plain(console, text[printed : whole - 1])
                        printed = whole
                    live.refresh()
    finally:  # on Ctrl-C, too: what has settled stays on the screen
        if printed < len(text):
            _print_plain(console, text[printed:])
    assert output is not None
    return output


def _print_plain(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)  # the terminal wraps, so that copied text has no extra line ends


def _region(step: Step, settled: str, console: Console, seconds: float) -> Group:
    """The unfinished line, the draft and the status, cut to the last rows that fit the terminal."""
    drawn = Text(settled)
    for piece in step.draft:
        drawn.append(*_styled(piece, mask_glyph(console)))
    rows = drawn.wrap(console, console.width, overflow="fold")
    status = Text(_status(step, seconds), style=STATUS, no_wrap=True, overflow="ellipsis")
    return Group(*rows[-max(1, console.height - 2) :], status)


def _styled(piece: DraftPiece, glyph: str) -> tuple[str, str]:
    return (glyph, MASKED) if piece.state == "masked" else (clean(piece.text), DRAFT)


def _status(step: Step, seconds: float) -> str:
    tokens: int | None = getattr(step, "tokens", None)
    if tokens is None:
        return f"forward {step.forward} · {seconds:.1f} s"
    per_forward, rate = tokens / max(1, step.forward), tokens / max(seconds, 1e-9)
    return f"forward {step.forward} · {tokens} tokens · {per_forward:.2f} per forward · {rate:.1f} tokens/s"


def _line_end(text: str) -> str:
    return "" if text.endswith("\n") else "\n"
