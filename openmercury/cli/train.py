"""`train`: the run, the estimate of `--dry-run`, and the benchmark that is answered during a run.

Training knows neither the engine nor evaluation. It hands an exported folder to a probe that is made here, and decodes
nothing itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openmercury.cli.options import Overrides, RecipeFile, option, refuse_unread
from openmercury.errors import DataError

if TYPE_CHECKING:
    from openmercury.train.config import Recipe

# Of the engine that answers beside a trainer: few texts at once, for the memory is the trainer's.
ENGINE = {"cache_tokens": 2**16, "max_requests": 32, "graphs": False}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="train")(train)


def train(
    invocation: typer.Context,
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
    from openmercury.cli.show import waiting
    from openmercury.config import read_toml

    read_toml(recipe)  # what is no TOML is told before torch is imported, which takes seconds
    refuse_unread(invocation, dict.fromkeys(("gpu", "gpus", "mfu", "shape"), "--dry-run"), {"--dry-run": dry_run})
    if dry_run:
        print(estimate(recipe, list(overrides or ()), gpu, gpus, mfu, shape))
        return
    with waiting("starting") if os.environ.get("RANK", "0") == "0" else nullcontext():  # one spinner, not N
        from openmercury.train.trainer import run_recipe

    run_recipe(recipe, list(overrides or ()), make_probes)


def estimate(path: Path, overrides: Sequence[str], gpu: str, gpus: int, mfu: float, shape: str | None = None) -> str:
    """What a recipe resolves to and will need; `shape` names a base that is not on this machine."""
    from openmercury.config import load_config
    from openmercury.train.config import Recipe
    from openmercury.train.memory import report

    recipe = load_config(Recipe, path, overrides)
    if shape is not None:
        from openmercury.model.shapes import config_of

        plain = config_of(shape).model_copy(update={"diffusion": None})
        recipe = recipe.model_copy(update={"base": None, "architecture": plain})
    return report(recipe, gpu=gpu, gpus=gpus, mfu=mfu, trained=_trained(recipe))


def _trained(recipe: Recipe) -> float:
    """The share of the tokens with a loss, by the manifests of the data; 1 where it is not made yet."""
    from openmercury.data.shards import read_manifest
    from openmercury.train.feed import trained_share

    try:
        return trained_share([read_manifest(source.path) for source in recipe.data.sources])
    except DataError:
        return 1.0


def make_probes(recipe: Recipe) -> Sequence[Callable[[Path], Mapping[str, float]]]:
    """What measures the recipe's task: pass@1 and tokens per forward. Raises now for what would fail later."""
    if recipe.eval is None or recipe.eval.task is None:
        return ()
    from openmercury.eval.runner import job
    from openmercury.eval.sandbox import usable_backend
    from openmercury.eval.tasks import find

    usable_backend()
    (task,) = find([recipe.eval.task])
    work = job(task, task.styles[0], None, recipe.eval.limit, None)

    def probe(folder: Path) -> Mapping[str, float]:
        from openmercury.engine.params import SamplingParams
        from openmercury.eval import runner
        from openmercury.eval.report import row_of
        from openmercury.eval.store import Store
        from openmercury.eval.systems import Ours, Sampling
        from openmercury.llm import LLM

        llm = LLM(folder, device=recipe.device, engine_changes=ENGINE)
        system = Ours(llm, SamplingParams(mode="ar" if llm.config.diffusion is None else "diffusion"))
        with tempfile.TemporaryDirectory() as kept:
            store = Store.create(Path(kept), dict(system.identity), {})
            runner.generate(system, work, 1, Sampling(), store, _silent)
            samples = store.samples(work.task, work.style)
            verdicts = runner.judge(work, samples, store.verdicts_path(work.task, work.style), _silent)
        row = row_of(work, samples, verdicts)
        found = {f"{task.name}/passed": row.passed / max(1, row.judged)}
        if row.cost is not None and row.cost.tpf is not None:
            found[f"{task.name}/tokens_per_forward"] = row.cost.tpf
        return found

    return (probe,)


def _silent(done: int, total: int) -> None:
    pass
