"""Recipes of the data side: what to read, how much of it to keep, and the seed. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from openmercury.config import Frozen


class Source(Frozen):
    """A folder of shards, and its share of the rows beside that of others."""

    path: Path
    weight: Annotated[float, Field(gt=0.0)] = 1.0


class PromptCounts(Frozen):
    """How many prompts of each kind at most; fewer are written where the sources give fewer."""

    complete: int = Field(default=0, ge=0)
    describe: int = Field(default=0, ge=0)
    named: int = Field(default=0, ge=0)
    code: int = Field(default=0, ge=0)
    port: int = Field(default=0, ge=0)
    exercise: int = Field(default=0, ge=0)
    mbpp: int = Field(default=0, ge=0)
    gsm8k: int = Field(default=0, ge=0)
    chat: int = Field(default=0, ge=0)
    fim: int = Field(default=0, ge=0)
    edit: int = Field(default=0, ge=0)
    apply: int = Field(default=0, ge=0)
    next_edit: int = Field(default=0, ge=0)
    json_: int = Field(default=0, ge=0, alias="json")
    tool: int = Field(default=0, ge=0)


class PromptRecipe(Frozen):
    """A set of prompts for self-distillation.

    `packages` are pinned requirements (name==version), `earlier` older releases of some of them whose functions show
    how code changes, `licences` the SPDX names and classifiers that may be used, `skip_paths` path fragments to leave
    out. `gsm8k` is a path relative to the evaluation data; "" leaves it out. The first `held_out` prompts of the file
    share no source with the others.
    """

    seed: int = 0
    packages: tuple[str, ...]
    licences: tuple[str, ...]
    earlier: tuple[str, ...] = ()
    held_out: int = Field(default=0, ge=0)
    skip_paths: tuple[str, ...] = ("/_vendor/", "/tests/")
    counts: PromptCounts = PromptCounts()
    gsm8k: str = "../train/gsm8k_train.jsonl.xz"
    max_characters: int = Field(default=2400, ge=200)
    per_function: int = Field(default=3, ge=1, description="prompts made from one function at most, fim aside")
    workers: int = Field(default=2, ge=1)
