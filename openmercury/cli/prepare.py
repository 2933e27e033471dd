"""`data prepare`: from sources to shards, with a progress bar; a run that was stopped goes on when started again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PHASES = {"read": "reading and filtering", "deduplicate": "looking for duplicates", "write": "writing shards"}


def prepare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Instead of the recipe's: workers=8.")
    ] = None,
) -> None:
    """Make shards from folders, archives, git repositories and tables; goes on where it was stopped."""
    from openmercury.config import load_config
    from openmercury.data.config import PrepareRecipe

    settings = load_config(PrepareRecipe, recipe, overrides or ())

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from openmercury.data import pipeline, report

    report.check(settings.pictures)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        bars: dict[str, TaskID] = {}

        def watch(phase: str, done: int, whole: int) -> None:
            if phase not in bars:
                bars[phase] = bar.add_task(PHASES[phase], total=max(1, whole))
            bar.update(bars[phase], completed=done if whole else 1)

        outcome = pipeline.prepare(settings, watch, report.write)
    if outcome is None:
        print(f"{settings.out} is there already, made by this recipe from these sources")
    else:
        print(settings.out / report.NAME)
