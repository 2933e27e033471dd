"""`compare`: two runs of `eval`, answer by answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that `eval` wrote.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(compare)


def compare(left: Run, right: Run) -> None:
    """The share of answers that two runs of `eval` give alike, token for token, and pass@1 of each."""
    from openmercury.eval.agreement import agreements
    from openmercury.eval.store import Store

    for one in agreements(Store.read(left), Store.read(right)):
        print(f"{one.task} ({one.style}): {one.identical} of {one.compared} answers identical", end="")
        print(f" ({one.identical / one.compared:.1%})")
        if one.judged:
            shares = " and ".join(f"{passed / one.judged:.1%}" for passed in one.passed)
            print(f"  pass@1 over the {one.judged} that both have judged: {shares}")
        if one.different:
            print(f"  different: {', '.join(one.different)}")
