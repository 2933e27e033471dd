"""Self-distillation data: a checkpoint answers prompts, and its own answers become training examples.

Drafts are judged by what the base itself would write, so this is the text they should be trained on. Prompts are read
from `prompts.jsonl.xz` (made by `openmercury data prompts`), answered in waves at full batch, and each wave is written
as one shard; an interrupted run goes on with the first wave that is missing.
"""

from __future__ import annotations

import json
import lzma
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from rich.console import Console

from openmercury.config import Frozen, load_config
from openmercury.data.shards import Example, write_manifest, write_shard
from openmercury.engine.config import EngineConfig
from openmercury.engine.params import SamplingParams
from openmercury.errors import DataError
from openmercury.llm import LLM
from openmercury.text import chat, fim


class DistillRecipe(Frozen):
    """`warm_share` of the prompts are answered at `temperature`, the others greedily; `skip` holds out the head.

    Two processes may share `out` when their ranges of prompts (`skip`, `count`) do not overlap.
    """

    model: Path
    prompts: Path
    out: Path
    skip: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1)] | None = None
    wave: Annotated[int, Field(ge=1)] = 8192
    batch: Annotated[int, Field(ge=1)] = 1024  # requests that run at once
    max_tokens: Annotated[int, Field(ge=1)] = 448
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.8
    warm_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4
    minutes: Annotated[float, Field(gt=0.0)] | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0


def read_prompts(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a prompt file; raises DataError when it is missing or cut."""
    try:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, EOFError, lzma.LZMAError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): make it again with `openmercury data prompts`") from None


def prompt_ids(llm: LLM, row: dict[str, Any]) -> list[int]:
    """Token ids of one prompt row, by the same functions that serve requests."""
    if row.get("kind") == "fim":
        return fim.render_fill(llm.tokenizer, row["prefix"], row["suffix"])
    return chat.render(llm.tokenizer, row["messages"])


def _params(recipe: DistillRecipe, number: int) -> SamplingParams:
    warm = (number * 0.618034) % 1 < recipe.warm_share
    return SamplingParams(
        mode="ar",
        max_tokens=recipe.max_tokens,
        temperature=recipe.temperature if warm else 0.0,
        seed=recipe.seed + number,
    )


def distill(recipe: DistillRecipe, console: Console) -> None:
    """Answer all prompts; truncated answers are dropped and counted."""
    bulk = EngineConfig(max_requests=recipe.batch, steps_per_sync=8, prefix_cache=False)
    llm = LLM(recipe.model, device=recipe.device, dtype=recipe.dtype, engine=bulk)
    rows = list(read_prompts(recipe.prompts))[recipe.skip :][: recipe.count]
    begin, kept, dropped, tokens = time.monotonic(), 0, 0, 0
    for wave, first in enumerate(range(0, len(rows), recipe.wave)):
        numbers = range(first, min(first + recipe.wave, len(rows)))
        path = recipe.out / f"answers-{recipe.skip + first:07d}.safetensors"
        if path.exists():
            continue
        prompts = [prompt_ids(llm, rows[number]) for number in numbers]
        outputs = llm.generate_batch(prompts, [_params(recipe, recipe.skip + number) for number in numbers])
        pairs = zip(prompts, outputs, strict=True)
        examples = [
            Example([*ids, *out.token_ids], len(ids), "fim" if rows[number].get("kind") == "fim" else "chat")
            for number, (ids, out) in zip(numbers, pairs, strict=True)
            if out.finish_reason == "stop"
        ]
        if examples:
            write_shard(path, examples, tokenizer=llm.tokenizer.fingerprint)
        kept, dropped = kept + len(examples), dropped + len(outputs) - len(examples)
        tokens += sum(out.usage.completion_tokens for out in outputs)
        minutes = (time.monotonic() - begin) / 60
        console.print(
            f"wave {wave}: {kept:,} answers kept, {dropped:,} cut off and dropped, {tokens / 1e6:.2f} M tokens, "
            f"{tokens / minutes / 60e3:.1f}k tok/s",
            highlight=False,
        )
        if recipe.minutes is not None and minutes > recipe.minutes:
            break
    write_manifest(recipe.out, recipe.model_dump(mode="json"))


def run_recipe(path: Path, overrides: list[str]) -> None:
    """`openmercury data generate RECIPE [key=value …]`."""
    distill(load_config(DistillRecipe, path, overrides), Console())
