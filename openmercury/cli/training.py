"""What `train` does beside training: the estimate of `--dry-run`, and the benchmark that is answered during a run.

Training knows neither the engine nor evaluation. It hands an exported folder to a probe that is made here, and decodes
nothing itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openmercury.errors import DataError

if TYPE_CHECKING:
    from openmercury.train.config import Recipe

# Of the engine that answers beside a trainer: few texts at once, for the memory is the trainer's.
ENGINE = {"cache_tokens": 2**16, "max_requests": 32, "graphs": False}


def dry_run(path: Path, overrides: Sequence[str], gpu: str, gpus: int, mfu: float) -> str:
    """What a recipe resolves to and will need."""
    from openmercury.config import load_config
    from openmercury.train.config import Recipe
    from openmercury.train.memory import report

    recipe = load_config(Recipe, path, overrides)
    return report(recipe, gpu=gpu, gpus=gpus, mfu=mfu, trained=trained_share(recipe))


def trained_share(recipe: Recipe) -> float:
    """Tokens with a loss ÷ tokens of rows, by the manifests of the data; 1 where it is not made yet."""
    from openmercury.data.shards import read_manifest

    try:
        counts = [read_manifest(source.path).counts for source in recipe.data.sources]
    except DataError:
        return 1.0
    return sum(each.trained for each in counts) / max(1, sum(each.tokens for each in counts))


def make_probes(recipe: Recipe) -> Sequence[Callable[[Path], Mapping[str, float]]]:
    """pass@1 and tokens per forward of the recipe's task in `diffusion`, before the run begins to find what is wrong."""
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
        mode = "ar" if llm.config.diffusion is None else "diffusion"
        system = Ours(llm, SamplingParams(mode=mode, max_tokens=work.max_tokens))
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
