"""What reaches the user's screen: the text exactly once, nothing that could drive the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from openmercury.cli.show import clean, draw_stream, print_figures, print_stream
from openmercury.llm import DraftPiece, Step
from tests.cli.fakes import MASK, TEXT, steps_of
from tests.cli.screen import Screen

HOSTILE = "\x1b[2Jred \x1b]0;title\x07 \x9b31m [bold]x[/bold] [/] :smile:\r\n\x00done\x7f\n"
HARMLESS = "[2Jred ]0;title 31m [bold]x[/bold] [/] :smile:\ndone\n"


def terminal(width: int = 40, height: int = 10) -> tuple[Screen, Console]:
    screen = Screen(width, height)
    console = Console(
        file=screen, force_terminal=True, width=width, height=height, color_system="truecolor", _environ={}
    )
    return screen, console


def pipe() -> tuple[io.StringIO, Console]:
    out = io.StringIO()
    return out, Console(file=out, force_terminal=False, width=40, _environ={})


def test_frames_in_a_pipe() -> None:
    out, console = pipe()
    output = draw_stream(iter(steps_of(TEXT)), console)
    assert out.getvalue() == (
        "[  1] def add(|a, b░░\n"
        "[  2] def add(a, b):\\n |   r░░\n"
        "[  3] def add(a, b):\\n    retur|n a ░░\n"
        "[  4] def add(a, b):\\n    return a + b\\n|\n"
        "def add(a, b):\n    return a + b\n"
    )
    assert output.text == TEXT


def test_frames_show_the_end_of_long_text() -> None:
    out, console = pipe()
    draw_stream(iter(steps_of("x" * 300 + "end", size=303)), console)
    frame = out.getvalue().splitlines()[0]
    assert frame == "[  1] …" + "x" * 68 + "end|"


def test_frames_do_without_glyphs_that_the_encoding_lacks() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    draw_stream(iter(steps_of(TEXT)), Console(file=out, force_terminal=False, _environ={}))
    out.flush()
    assert raw.getvalue().startswith(b"[  1] def add(|a, b..\n")


@pytest.mark.parametrize("in_place", [True, False])
def test_control_characters_and_markup_are_just_text(in_place: bool) -> None:
    screen, out = terminal(80), pipe()
    file, console = screen if in_place else out
    draw_stream(iter(steps_of(HOSTILE, size=3)), console)
    shown = screen[0].shown if in_place else "".join(out[0].getvalue().splitlines(keepends=True)[-2:])
    assert shown.strip("\n") == HARMLESS.strip("\n")
    if not in_place:
        assert clean(file.getvalue()) == file.getvalue()


def test_streamed_text_is_clean_and_ends_its_line() -> None:
    out = io.StringIO()
    print_stream(iter(steps_of(HOSTILE + "x", size=3)), out)
    assert out.getvalue() == HARMLESS + "x\n"
    out = io.StringIO()
    print_stream(iter(steps_of(TEXT)), out)
    assert out.getvalue() == TEXT


@given(st.text(alphabet="a \x1b\n\r", max_size=20), st.text(alphabet="b\x1b\n\r", max_size=20))
def test_cleaning_works_piece_by_piece(left: str, right: str) -> None:
    assert clean(left + right) == clean(left) + clean(right)


@given(st.lists(st.text(alphabet="ab  ", max_size=100), max_size=30), st.integers(1, 60), st.integers(3, 8))
def test_the_text_is_left_on_screen_exactly_once(lines: list[str], size: int, height: int) -> None:
    text = "\n".join(line.rstrip() for line in ["first", *lines, "last"])
    screen, console = terminal(24, height)
    draw_stream(iter(steps_of(text, size)), console)
    wrapped = Screen(24, height)
    wrapped.write(text)
    assert screen.shown == wrapped.shown
    assert screen.cursor_shown


def test_the_active_block_is_drawn_behind_the_settled_text() -> None:
    screen, console = terminal()
    seen: list[str] = []

    def watched() -> Iterator[Step]:
        yield Step("one\ntw", (DraftPiece("o\nthr", "draft"), MASK, MASK), 3)
        seen.append(screen.shown)
        yield from steps_of("one\ntwo\nthree", size=99)

    draw_stream(watched(), console)
    assert seen[0].startswith("one\ntwo\nthr░░\nforward 3 · ")
    assert screen.shown == "one\ntwo\nthree"


def test_draft_settled_and_masked_look_different() -> None:
    raw = io.StringIO()
    console = Console(file=raw, force_terminal=True, width=40, height=10, color_system="truecolor", _environ={})
    draw_stream(iter([Step("one", (DraftPiece("two", "draft"), MASK), 1), *steps_of("one", 9)]), console)
    assert "one\x1b[3;36mtwo\x1b[0m\x1b[2m░\x1b[0m" in raw.getvalue()


def test_an_interrupted_drawing_keeps_what_has_settled() -> None:
    def interrupted() -> Iterator[Step]:
        yield Step("one\ntwo", (MASK,), 1)
        raise KeyboardInterrupt

    screen, console = terminal()
    with pytest.raises(KeyboardInterrupt):
        draw_stream(interrupted(), console)
    assert screen.shown == "one\ntwo"
    assert screen.cursor_shown


def test_figures_are_for_watchers_only(capsys: pytest.CaptureFixture[str]) -> None:
    output = steps_of(TEXT)[-1].output
    assert output is not None
    print_figures(output)
    assert capsys.readouterr().err == ""
