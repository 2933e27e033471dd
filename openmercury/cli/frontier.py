"""`frontier`: runs of `eval` side by side, quality against tokens per forward and per second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from openmercury.cli.options import SHOWN, option


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="frontier")(frontier)


def frontier(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders that `eval` made.")],
    task: Annotated[str, option("The benchmark that all of them answered.")],
    style: Annotated[
        Literal["chat", "completion", "fill"] | None, option("How it was asked, where a run has several.")
    ] = None,
    picture: Annotated[Path | None, option("Draw it (.svg or .png).", panel=SHOWN, metavar="OUT")] = None,
    json_out: Annotated[Path | None, option("Write the figures.", "--json", panel=SHOWN, metavar="OUT")] = None,
) -> None:
    """Lay runs side by side, and print Markdown: points, what no other beats, area under accuracy–parallelism (AUP)."""
    from openmercury.eval import frontier as curves
    from openmercury.eval.store import write_whole

    if picture is not None:
        from openmercury.eval.picture import check, draw_frontier

        check(picture)
    folders = {path.resolve(): path for path in runs}  # each once, as the user wrote it
    whole = curves.frontier(task, [curves.read(path, task, style) for path in folders.values()])
    print(curves.markdown(whole), end="")
    for path in (picture, json_out):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if json_out is not None:
        write_whole(json_out, json.dumps(whole.as_json(), indent=2) + "\n")
    if picture is not None:
        draw_frontier(picture, whole)
