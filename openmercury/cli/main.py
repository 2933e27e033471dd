"""`openmercury`: the commands, and how they start and end.

Each command's module registers itself and imports what it needs when it runs: help must not wait for torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import openmercury
from openmercury.cli import (
    arena,
    bench,
    chat,
    compare,
    data,
    demo,
    doctor,
    errors,
    evaluate,
    frontier,
    generate,
    harness,
    importer,
    likelihood,
    serve,
    train,
)  # fmt: skip

app = typer.Typer(
    name="openmercury",
    help="A diffusion language model for code: generate, serve, train and measure.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"openmercury {openmercury.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full trace of an error. May stand anywhere on the line.")
    ] = False,
) -> None:
    """`main` has taken --debug off the line already; it is declared for the help page."""


for module in (
    demo,
    generate,
    chat,
    serve,
    importer,
    data,
    train,
    evaluate,
    compare,
    frontier,
    arena,
    likelihood,
    harness,
    bench,
    doctor,
):
    module.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: the process's own) and return its exit code; see `errors`."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read when torch loads. Threads that spin long while they wait stop each other wherever another program runs.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug, words = take_debug(words)
    errors.tolerate_encoding()
    return errors.guarded(lambda: app(words or ["--help"], prog_name="openmercury", standalone_mode=False), debug=debug)


def take_debug(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` stands anywhere before a `--`, and the line without it."""
    end = words.index("--") if "--" in words else len(words)
    left = [word for word in words[:end] if word != "--debug"]
    return len(left) < end, [*left, *words[end:]]


if __name__ == "__main__":
    sys.exit(main())
