"""The arena in the terminal: the code around the gap, two answers side by side, one key a vote."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from openmercury.cli.errors import UsageProblem, describe
from openmercury.cli.show import clean, waiting
from openmercury.errors import InputError, RequestFailedError

if TYPE_CHECKING:
    from openmercury.eval.arena.match import Arena, Match
    from openmercury.eval.arena.standings import Standing
    from openmercury.eval.arena.votes import Outcome, Vote
    from openmercury.eval.tasks.base import Prompt

BEFORE, BEHIND = 24, 12  # lines of code that are shown around the gap
HELP = "1 or 2 is better, t tie, b both bad, s skip, q quit"
KEYS: dict[str, Outcome] = {"1": "first", "2": "second", "t": "tie", "b": "bad"}
SKIP, QUIT = "s", "q"
END_OF_INPUT = ("\x03", "\x04", "")  # Ctrl-C and Ctrl-D as a raw terminal gives them; nothing at all


def need_person() -> None:
    """Raise UsageProblem where nobody could vote."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageProblem("the arena asks a person: run it in a terminal, or with --page")


def play(arena: Arena, prompts: Iterator[Prompt]) -> None:
    """Match after match, until the prompts end or the person leaves."""
    console = Console()
    for prompt in prompts:
        try:
            with waiting("both are writing"):
                match = arena.match(prompt)
        except (RequestFailedError, InputError) as error:
            console.print(Text(describe(error)))
            continue
        if match.same:
            arena.vote(match, "same")
            console.print("Both answers are the same: counted as a tie.")
            continue
        show_match(console, match)
        key = read_key(console)
        if key == QUIT:
            return
        if key in KEYS:
            reveal(console, arena.vote(match, KEYS[key]))
    console.print("There are no more prompts.")


def pasted(marker: str) -> Iterator[Prompt]:
    """Prompts that a person pastes, until an empty one; line by line, so that nothing is run or edited."""
    from openmercury.eval.arena.prompts import marked

    while True:
        print(f"Paste code ({marker} where a gap is), then a line with a single dot; an empty one leaves:", flush=True)
        lines = _lines()
        if not "".join(lines).strip():
            return
        yield marked("".join(lines).removesuffix("\n"), marker)


def _lines() -> list[str]:
    lines: list[str] = []
    for line in iter(sys.stdin.readline, ""):
        if line.strip() == ".":
            break
        lines.append(line)
    return lines


def show_match(console: Console, match: Match) -> None:
    """The code, with the gap marked, and both answers without names."""
    from openmercury.eval.arena.prompts import around

    prefix, suffix = map(clean, around(match.prompt))
    before, behind = prefix.split("\n")[-BEFORE:], suffix.split("\n")[:BEHIND]
    console.print(
        Panel(Text.assemble("\n".join(before), ("⟨answer⟩", "bold reverse"), "\n".join(behind)), title="code")
    )
    table = Table(expand=True, show_lines=True)
    for number in ("1", "2"):
        table.add_column(number, ratio=1, overflow="fold")
    table.add_row(*(Text(clean(answer.text)) for answer in match.answers))
    console.print(table)


def read_key(console: Console) -> str:
    """One of the keys of `HELP`; the end of input leaves."""
    console.print(Text(HELP, style="dim"))
    while True:
        try:
            key = typer.getchar().lower()
        except (EOFError, KeyboardInterrupt):
            return QUIT
        if key in END_OF_INPUT:
            return QUIT
        if key in (*KEYS, SKIP, QUIT):
            return key


def reveal(console: Console, vote: Vote) -> None:
    """Who wrote what, and how long it took."""
    first = f"1 is {vote.first} ({vote.first_seconds:.2f} s)"
    console.print(Text(f"{first}, 2 is {vote.second} ({vote.second_seconds:.2f} s)\n", style="bold"))


def print_standings(rows: Sequence[Standing], votes: int, first: int, chosen: int) -> None:
    """The scores, and what must be known to read them."""
    from openmercury.eval.arena.standings import COLUMNS, cells

    console, table = Console(), Table()
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for row in rows:
        table.add_row(*map(Text, cells(row)))
    console.print(table)
    console.print(f"{votes} votes; 1 was chosen in {first} of the {chosen} that chose.")
    if rows:
        console.print("Bradley–Terry scores, mean 1000: 400 points more are 10 to 1. Groups never met.")
