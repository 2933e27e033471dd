"""The recipe of a training run. Paths are relative to the working directory. No torch at module level."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from openmercury.config import Frozen
from openmercury.data.config import Source

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


class Recipe(Frozen):
    """Everything a run depends on; saved beside its checkpoints. `minutes` ends a session early, resumable.

    `init` is a checkpoint folder whose adapter the run starts from; a run that is resumed has no more use for it.
    """

    base: Path
    out: Path
    init: Path | None = None
    rank: Annotated[int, Field(ge=1)] = 128
    mask_id: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=1)]
    minutes: Annotated[float, Field(gt=0.0)] | None = None
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    compile: bool = False
    log_every: Annotated[int, Field(ge=1)] = 10
    save_every: Annotated[int, Field(ge=1)] = 500
    objective: BlockDiffusion = BlockDiffusion()
    data: Data
    optim: Optim = Optim()
