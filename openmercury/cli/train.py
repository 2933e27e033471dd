"""`train` and the data commands before it: prompts, answers to them, a look at a shard.

The work is done by `train`, `data` and `distill`; an interrupted run goes on where it stopped when started again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from openmercury.cli.options import option
from openmercury.cli.prepare import prepare
from openmercury.cli.rows import chats, show

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Instead of the recipe's: optim.lr=1e-4."),
]

CHECK_SECONDS = 5.0  # an answer that is executed may take

data = typer.Typer(help="Make and look at training data.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="train")(train)
    data.command(name="prepare")(prepare)
    data.command(name="prompts")(prompts)
    data.command(name="generate")(generate)
    data.command(name="chats")(chats)
    data.command(name="show")(show)
    app.add_typer(data, name="data")


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, option("Print the resolved recipe, memory by part, operations and time.", "--dry-run")
    ] = False,
    gpu: Annotated[str, option("Of --dry-run: the GPU whose peak is meant.", metavar="NAME")] = "H100",
    gpus: Annotated[int, typer.Option(min=1, help="Of --dry-run: how many of them.")] = 1,
    mfu: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of --dry-run: the share of the peak reached.")] = 0.4,
    shape: Annotated[
        str | None, option("Of --dry-run: published shape of a base that is not here.", metavar="NAME")
    ] = None,
) -> None:
    """Train an adapter, or all weights; goes on by itself where an interrupted run stopped.

    On several GPUs: torchrun --nproc-per-node N -m openmercury train RECIPE
    """
    from openmercury.cli import training
    from openmercury.cli.show import waiting

    _read(recipe)
    if dry_run:
        print(training.dry_run(recipe, list(overrides or ()), gpu, gpus, mfu, shape))
        return
    with waiting("starting") if os.environ.get("RANK", "0") == "0" else nullcontext():  # one spinner, not N
        from openmercury.train.trainer import run_recipe

    run_recipe(recipe, list(overrides or ()), training.make_probes)


def prompts(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for prompts and report.")],
    cache: Annotated[Path, option("Folder that keeps the packages fetched.", metavar="FOLDER")],
    eval_data: Annotated[Path, option("Folder of the benchmarks to keep out.", metavar="FOLDER")],
) -> None:
    """Write prompts from packages and exercises, none of them near a benchmark's."""
    from openmercury.cli.show import waiting
    from openmercury.config import load_config
    from openmercury.data.config import PromptRecipe

    settings = load_config(PromptRecipe, recipe)
    with waiting(f"writing prompts from {len(settings.packages)} packages"):
        from openmercury.data.prompts.collect import prepare_prompts

        print(prepare_prompts(settings, cache, out, eval_data))


def generate(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Let a checkpoint answer prompts; the answers are training examples."""
    from openmercury.cli.show import waiting

    _read(recipe)
    with waiting("starting"):
        from openmercury.distill import run_recipe

    run_recipe(recipe, list(overrides or ()), _judge)


def _judge() -> Callable[[str, Mapping[str, str]], bool]:
    """Executes answers in the sandbox; raises SandboxError where there is none."""
    from openmercury.eval import sandbox
    from openmercury.eval.tasks.base import Program
    from openmercury.eval.tasks.extract import extract

    sandbox.usable_backend()

    def right(answer: str, check: Mapping[str, str]) -> bool:
        parts = (check["before"], extract(answer, check["name"]), check["after"])
        return sandbox.run(Program("\n".join(parts), timeout=CHECK_SECONDS)).passed

    return right


def _read(recipe: Path) -> None:
    """Fail on a recipe that is no TOML before torch is imported, which takes seconds."""
    from openmercury.config import read_toml

    read_toml(recipe)
