"""The recipe of a training run. Paths are relative to the working directory. No torch at module level."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from openmercury.config import Frozen
from openmercury.data.config import Source
from openmercury.model.config import ModelConfig

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class BlockDiffusion(Frozen):
    """Denoise blocks behind clean text; only the gated adapter learns.

    `block_sizes` are drawn per row and their grid is shifted by a random offset, since decoding starts blocks
    anywhere. `decay` weights the k-th position of a block by decay^k: early drafts decide how many are accepted.
    `noisy_share` of the positions pass the noisy half, blocks that teach something first: a little more than the share
    of the data that is trained on saves the time of the rest.
    """

    kind: Literal["block_diffusion"] = "block_diffusion"
    block_sizes: tuple[Annotated[int, Field(ge=2, le=256)], ...] = (8, 16)
    full_mask_share: Share = 0.5
    min_rate: Share = 0.2
    ce: Annotated[float, Field(ge=0.0)] = 0.5
    kl: Annotated[float, Field(ge=0.0)] = 0.5
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    noisy_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class Data(Frozen):
    """Folder of example shards, or a mix of several, and the length of the rows they are packed into."""

    path: Path | None = None
    mix: tuple[Source, ...] = ()
    row_length: Annotated[int, Field(ge=16)] = 1024
    rows: Annotated[int, Field(ge=1)] = 24  # rows a step, over all processes
    forward_rows: Annotated[int, Field(ge=1)] | None = None  # rows of one forward of a process; None: all of its own

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.path is None) == (not self.mix):
            raise ValueError("give either path, a folder of shards, or mix, a list of folders with weights")
        return self

    @property
    def sources(self) -> tuple[Source, ...]:
        """The folders with their weights."""
        return self.mix if self.path is None else (Source(path=self.path),)


class Optim(Frozen):
    """AdamW with warm-up, plateau and a linear decay to zero over the last `cooldown` share of the steps."""

    lr: Annotated[float, Field(gt=0.0)] = 4e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    cooldown: Share = 0.3
    clip: Annotated[float, Field(gt=0.0)] = 1.0


class Context(Frozen):
    """A longer context by YaRN (arXiv 2309.00071): rotary angles stretched by `factor`, and `length` positions."""

    factor: Annotated[float, Field(gt=1.0)]
    length: Annotated[int, Field(ge=1)]


class Eval(Frozen):
    """What is measured during training, every `every` steps: on rows that are never trained on, and on a task.

    Rows come from the shards of `path`, else `share` of the training rows are held out, chosen by their content. `task`
    is a benchmark's name; `limit` of its problems are answered in process, from a temporary export.
    """

    every: Annotated[int, Field(ge=1)]
    path: Path | None = None
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    rows: Annotated[int, Field(ge=1)] = 32
    drafts: Annotated[int, Field(ge=1)] = 7
    task: str | None = None
    limit: Annotated[int, Field(ge=1)] = 32


Learn = Literal["adapter", "adapter_embeddings", "full"]


class Recipe(Frozen):
    """Everything a run depends on; saved beside its checkpoints. `minutes` ends a session early, resumable.

    A run starts from the checkpoint folder `base`, or from random weights of the shape `architecture` with the files of
    `tokenizer`. `init` is a checkpoint folder whose adapter it starts from; a run that is resumed has no more use for
    it. `learn` says what is trained: the gated adapter, beside it the embeddings and the head, or all weights and no
    adapter. `shard` splits weights over the processes, by default those that learn; `checkpointing` computes
    activations twice instead of keeping them. `ema` is the decay of an average of the weights, exported in their place.
    """

    base: Path | None = None
    architecture: ModelConfig | None = None
    tokenizer: Path | None = None
    out: Path
    init: Path | None = None
    learn: Learn = "adapter"
    rank: Annotated[int, Field(ge=1)] = 128
    mask_id: Annotated[int, Field(ge=0)] | None = None
    context: Context | None = None
    steps: Annotated[int, Field(ge=1)]
    minutes: Annotated[float, Field(gt=0.0)] | None = None
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    compile: bool = False
    checkpointing: bool = False
    shard: bool | None = None
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    log_every: Annotated[int, Field(ge=1)] = 10
    save_every: Annotated[int, Field(ge=1)] = 500
    keep: Annotated[int, Field(ge=1)] = 2
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    objective: BlockDiffusion = BlockDiffusion()
    data: Data
    optim: Optim = Optim()
    eval: Eval | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.base is None) == (self.architecture is None):
            raise ValueError("give either base, a checkpoint folder, or architecture, a shape for random weights")
        if self.base is None and self.learn != "full":
            raise ValueError(f'learn = "{self.learn}" needs a base: random weights learn as a whole, learn = "full"')
        if self.base is None and self.tokenizer is None:
            raise ValueError("tokenizer is missing: name the checkpoint folder whose tokenizer wrote the shards")
        if self.init is not None and self.learn == "full":
            raise ValueError('init is an adapter, and learn = "full" has none: name the folder as base instead')
        if self.mask_id is None:
            raise ValueError("mask_id is missing: give an id of the vocabulary that no text encodes to")
        return self

    @property
    def adapted(self) -> bool:
        """Is there an adapter?"""
        return self.learn != "full"
