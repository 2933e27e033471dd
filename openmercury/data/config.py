"""Recipes of the data side: what to read, how much of it to keep, and the seed. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ExampleRecipe(Frozen):
    """How documents become examples. Shares are probabilities, drawn for each document or piece by its id.

    max_tokens   of an example; not above the row length of the runs they are made for. Longer code is split at line
                 ends, longer edits and conversations are left out
    functions    share of files given function by function in place of whole
    fim          share of the pieces of code with a hole in the middle; `spm` of those have the suffix first, `syntax`
                 of those a hole that is a node of the syntax, the others one at random characters
    fim_loss     what is trained on: the middle, as requests need it, or all of it, as in pre-training
    edits        next-edit examples of one changed file, at most; `no_edit` is the share of files that give one more
                 whose answer is that nothing is to be changed
    apply        share of changed files that give a merge
    block_size   pad examples to multiples of it, for checkpoints whose blocks are aligned
    """

    seed: int = 0
    max_tokens: Annotated[int, Field(ge=128)] = 2048
    functions: Share = 0.1
    fim: Share = 0.5
    spm: Share = 0.5
    syntax: Share = 0.5
    fim_loss: Literal["middle", "all"] = "middle"
    edits: Annotated[int, Field(ge=0)] = 2
    no_edit: Share = 0.1
    apply: Share = 0.5
    block_size: Annotated[int, Field(ge=2)] | None = None
