"""`harness`: tasks of lm-eval. The table goes to stdout, its progress bars and logs to stderr."""

from __future__ import annotations

import importlib.util
import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from openmercury.cli.errors import UsageProblem
from openmercury.cli.likelihood import Side
from openmercury.cli.options import DECODING, MODEL, SHOWN, DtypeName, ModeName, Settings, option
from openmercury.errors import ConfigError

TASKS, LIKELIHOOD = "Tasks", "Likelihood"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(harness)


def harness(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK…", help="Tasks or groups of lm-eval.")],
    model: Annotated[
        str | None,
        option("Checkpoint folder. Default: $OPENMERCURY_MODEL, else the shipped one.", panel=MODEL, metavar="FOLDER"),
    ] = None,
    device: Annotated[str, option("auto, cpu or cuda.", panel=MODEL)] = "auto",
    dtype: Annotated[DtypeName, option("Number format of the weights.", panel=MODEL)] = "auto",
    mode: Annotated[ModeName, option("How answers are decoded.", panel=DECODING)] = "verified",
    threshold: Annotated[
        float | None, option("diffusion: accept predictions at least this sure. Default: 0.15.", panel=DECODING)
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests at once.", rich_help_panel=DECODING)] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling, and of the bound's noise.")] = 0,
    likelihood: Annotated[Side, option("ar is exact, diffusion a bound.", panel=LIKELIHOOD)] = "ar",
    block_size: Annotated[
        int | None,
        typer.Option(min=1, help="Of the bound. Default: the checkpoint's.", rich_help_panel=LIKELIHOOD),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Draws of noise for each bound. Default: 4.", rich_help_panel=LIKELIHOOD),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Take so many items of each task.", rich_help_panel=TASKS)
    ] = None,
    fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples in front. Default: the task's.", rich_help_panel=TASKS)
    ] = None,
    chat: Annotated[bool, option("Ask through the chat template.", "--chat", panel=TASKS)] = False,
    include: Annotated[Path | None, option("Folder of more task files.", panel=TASKS, metavar="FOLDER")] = None,
    json: Annotated[bool, option("Print lm-eval's results as JSON.", "--json", panel=SHOWN)] = False,
) -> None:
    """Any task of lm-eval (EleutherAI's harness): by answers or by likelihoods."""
    Settings(mode=mode, threshold=threshold, seed=seed).sampling()  # refused in the user's words
    if likelihood == "ar" and (block_size is not None or samples is not None):
        useless = "--samples" if block_size is None else "--block-size"
        raise UsageProblem(f"{useless} only acts with --likelihood diffusion: drop it or add that")
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("harness needs lm-eval: pip install 'openmercury[harness]'")
    from openmercury.eval.harness import OpenMercury, run, table
    from openmercury.eval.likelihood import SAMPLES

    asked = OpenMercury(
        model,
        mode=mode,
        threshold=threshold,
        likelihood=likelihood,
        bound_block_size=block_size,
        bound_samples=samples or SAMPLES,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    results = run(asked, tasks, limit=limit, fewshot=fewshot, chat_template=chat, include=include)
    print(json_format.dumps(results, default=str) if json else table(results))
