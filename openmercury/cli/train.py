"""`train` and the data commands before it: prompts, answers to them, a look at a shard.

The work is done by `train`, `data` and `distill`; an interrupted run goes on where it stopped when started again.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openmercury.cli.options import option
from openmercury.errors import DataError

if TYPE_CHECKING:
    from openmercury.data.shards import Examples

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Instead of the recipe's: optim.lr=1e-4."),
]

data = typer.Typer(help="Make and look at training data.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="train")(train)
    data.command(name="prompts")(prompts)
    data.command(name="generate")(generate)
    data.command(name="show")(show)
    app.add_typer(data, name="data")


def train(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Train an adapter; goes on by itself where an interrupted run stopped.

    On several GPUs: torchrun --nproc-per-node N -m openmercury train RECIPE
    """
    from openmercury.cli.show import waiting

    _read(recipe)
    with waiting("starting") if os.environ.get("RANK", "0") == "0" else nullcontext():  # one spinner, not N
        from openmercury.train.trainer import run_recipe

    run_recipe(recipe, list(overrides or ()))


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
        from openmercury.data.prompt_set import prepare_prompts

        print(prepare_prompts(settings, cache, out, eval_data))


def generate(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Let a checkpoint answer prompts; the answers are training examples."""
    from openmercury.cli.show import waiting

    _read(recipe)
    with waiting("starting"):
        from openmercury.distill import run_recipe

    run_recipe(recipe, list(overrides or ()))


def show(
    shard: Annotated[Path, typer.Argument(metavar="SHARD", help="A shard, or a folder of shards.")],
    rows: Annotated[int, typer.Option(min=0, help="Examples to print.")] = 3,
    model: Annotated[str | None, option("Checkpoint whose tokenizer reads them.", metavar="FOLDER")] = None,
) -> None:
    """Print the first examples of a shard: what is given, and what is trained on."""
    from openmercury.cli.show import clean
    from openmercury.llm import default_model
    from openmercury.text.tokenizer import Tokenizer

    examples = _examples(shard)
    tokenizer = Tokenizer.load(default_model() if model is None else Path(model))
    ends = list(accumulate(map(int, examples.length)))
    print(f"{len(ends):,} examples, {len(examples.ids):,} tokens, {int(examples.prompt.sum()):,} of them prompt")
    for number, end in enumerate(ends[:rows]):
        begin = end - int(examples.length[number])
        middle = begin + int(examples.prompt[number])
        print(f"--- example {number}: {middle - begin} tokens of prompt")
        print(clean(tokenizer.decode(examples.ids[begin:middle].tolist(), special=True)))
        print(f"--- example {number}: {end - middle} tokens trained on")
        print(clean(tokenizer.decode(examples.ids[middle:end].tolist(), special=True)))


def _read(recipe: Path) -> None:
    """Fail on a recipe that is no TOML before torch is imported, which takes seconds."""
    from openmercury.config import read_toml

    read_toml(recipe)


def _examples(path: Path) -> Examples:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from openmercury.data.shards import Examples, read_shards

    if path.is_dir():
        return read_shards(path)
    try:
        arrays = load_file(path)
        return Examples(arrays["ids"], arrays["length"], arrays["prompt"])
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(
            f"{path} is not a whole shard ({error}): give one made by `openmercury data generate`"
        ) from None
