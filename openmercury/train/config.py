"""The recipe of a training run. Paths are relative to the working directory. No torch at module level."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from openmercury.config import Frozen
from openmercury.data.config import Source
from openmercury.model.config import ModelConfig

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class AR(Frozen):
    """Next-token prediction on packed rows; the base learns."""

    kind: Literal["ar"] = "ar"


class MaskedDiffusion(Frozen):
    """Denoise whole documents in both directions at once: t uniform in (min_rate, 1), weight 1/t (MDLM, LLaDA).

    `block_size` is written into the checkpoint: what is decoded at once.
    """

    kind: Literal["masked_diffusion"] = "masked_diffusion"
    shift: bool = False
    min_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-3
    block_size: Annotated[int, Field(ge=1)] = 32


class OnPolicy(Frozen):
    """On this share of the steps, states are the model's own after 1 … `forwards` denoising steps from full masks.

    A step accepts what is likely to be right together with more than `threshold`, as `diffusion` decodes. The base's
    own choices on the text so written take the place of the data's tokens.
    """

    share: Share = 0.0
    forwards: Annotated[int, Field(ge=1, le=8)] = 2
    threshold: Share = 0.5


class Curriculum(Frozen):
    """Block sizes that take over from one another in equal parts of the first `share` of the steps."""

    sizes: tuple[Annotated[int, Field(ge=1, le=256)], ...] = ()
    share: Share = 0.5


class Blocks(Frozen):
    """What block diffusion and its DPO share: blocks of `block_sizes`, drawn per row on a grid with a random offset,
    since decoding starts blocks anywhere. With `shift` row i predicts token i + 1, as the base does."""

    block_sizes: tuple[Annotated[int, Field(ge=1, le=256)], ...] = (8, 16)
    shift: bool = True


class BlockDiffusion(Blocks):
    """Denoise blocks behind clean text, [noisy ‖ clean]; see docs/training.md for the equations.

    `weights = "flat"` draws noise levels with the options from `full_mask_share` to `decay`; `"bound"` draws them
    uniformly and weights by 1/t, which is the NELBO. Blocks that teach something pass the noisy half first: a
    `noisy_share` a little above the share of the data that is trained on saves the time of the rest.
    """

    kind: Literal["block_diffusion"] = "block_diffusion"
    curriculum: Curriculum = Curriculum()
    weights: Literal["flat", "bound"] = "flat"
    full_mask_share: Share = 0.5
    min_rate: Share = 0.2
    max_rate: Share = 1.0
    late: Annotated[float, Field(ge=0.0)] = 0.0  # β: place k of a block is masked in proportion to exp(β (1 − t) k)
    complementary: bool = False  # a second copy masks exactly what the first left
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # the k-th row of a block weighs decay^k
    noisy_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the positions pass the noisy half, see below
    ce: Annotated[float, Field(ge=0.0)] = 0.5
    kl: Annotated[float, Field(ge=0.0)] = 0.5  # to the AR teacher: the base as the run found it
    align: Annotated[float, Field(ge=0.0)] = 0.0  # 1 − cosine of hidden states to the teacher's, mean over layers
    certainty: Annotated[float, Field(ge=0.0)] = 0.0  # entropy of right predictions
    chained: Share = 0.75  # of the rows know the token before theirs, where the adapter has a chain
    ar: Annotated[float, Field(ge=0.0)] = 0.0  # next-token loss of the clean half, where the base learns
    on_policy: OnPolicy = OnPolicy()

    @model_validator(mode="after")
    def _consistent(self) -> BlockDiffusion:
        flat = {"full_mask_share", "min_rate", "max_rate", "late", "complementary", "decay"}
        odd = sorted(flat & {name for name in self.model_fields_set if getattr(self, name) != _default(self, name)})
        if self.weights == "bound" and odd:
            raise ValueError(f'{", ".join(odd)} would shape flat weights: leave out, or write weights = "flat"')
        if self.min_rate > self.max_rate:
            raise ValueError(f"min_rate {self.min_rate} is above max_rate {self.max_rate}: exchange them")
        if self.weights == "bound" and self.on_policy.share:
            raise ValueError('own states have no 1/t weight: leave out on_policy, or write weights = "flat"')
        if self.complementary and self.on_policy.share:
            raise ValueError("own states have no complement: leave out on_policy or complementary")
        return self


class DPO(Blocks):
    """Direct preference optimisation on pairs, with the block-diffusion bound in place of the likelihood.

    −log σ(β [(B(chosen) − B⁰(chosen)) − (B(rejected) − B⁰(rejected))]); B⁰ is the model the run started from. Both
    models and both answers see the same noise, `samples` times.
    """

    kind: Literal["dpo"] = "dpo"
    beta: Annotated[float, Field(gt=0.0)] = 0.1
    samples: Annotated[int, Field(ge=1)] = 2


def _default(settings: Frozen, name: str) -> object:
    return type(settings).model_fields[name].default


def is_taught(objective: AR | MaskedDiffusion | BlockDiffusion | DPO) -> bool:
    """Does a teacher say what is learnt?"""
    if not isinstance(objective, BlockDiffusion):
        return False
    return bool(objective.kl or objective.align or objective.on_policy.share)


def kind(value: Any) -> str:
    """The tag of an `[objective]` table; block diffusion where it names none."""
    found = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "block_diffusion" if found is None else str(found)


ObjectiveConfig = Annotated[
    Annotated[AR, Tag("ar")]
    | Annotated[MaskedDiffusion, Tag("masked_diffusion")]
    | Annotated[BlockDiffusion, Tag("block_diffusion")]
    | Annotated[DPO, Tag("dpo")],
    Discriminator(kind),
]


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
    is a benchmark's name; `limit` of its problems are answered in process, from a temporary export. `drafts` is how
    many tokens of a draft are counted, `needles` are lengths of texts in which a needle is looked for.
    """

    every: Annotated[int, Field(ge=1)]
    path: Path | None = None
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    rows: Annotated[int, Field(ge=1)] = 32
    drafts: Annotated[int, Field(ge=1)] = 7
    needles: tuple[Annotated[int, Field(ge=64)], ...] = ()
    task: str | None = None
    limit: Annotated[int, Field(ge=1)] = 32


Learn = Literal["adapter", "adapter_embeddings", "full"]


class Recipe(Frozen):
    """Everything a run depends on; saved beside its checkpoints. `minutes` ends a session early, resumable.

    A run starts from the checkpoint folder `base`, or from random weights of the shape `architecture` with the files of
    `tokenizer`. `init` is a checkpoint folder whose adapter it starts from; a run that is resumed has no more use for
    it. `learn` says what is trained: the gated adapter, beside it the embeddings and the head, or all weights and no
    adapter; `chain` is the rank of what ties a draft to the token before it (0: nothing does). `shard` splits weights
    over the processes, by default those that learn; `checkpointing` computes activations twice instead of keeping them.
    `ema` is the decay of an average of the weights, exported in their place.
    """

    base: Path | None = None
    architecture: ModelConfig | None = None
    tokenizer: Path | None = None
    out: Path
    init: Path | None = None
    learn: Learn = "adapter"
    rank: Annotated[int, Field(ge=1)] = 128
    chain: Annotated[int, Field(ge=0)] = 0
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
    objective: ObjectiveConfig = BlockDiffusion()
    data: Data
    optim: Optim = Optim()
    eval: Eval | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.base is None) == (self.architecture is None):
            raise ValueError("give either base, a checkpoint folder, or architecture, a shape for random weights")
        if self.base is None and self.learn != "full":
            raise ValueError(f'learn = "{self.learn}" needs a base: random weights learn as a whole, learn = "full"')
        if (self.base is None) != (self.tokenizer is not None):
            raise ValueError("tokenizer goes with architecture: the checkpoint folder whose tokenizer wrote the shards")
        if self.base is None and is_taught(self.objective):
            raise ValueError("kl, align and on_policy want a base that knows something: random weights need kl = 0")
        if self.init is not None and self.learn == "full":
            raise ValueError('init is an adapter, and learn = "full" has none: name the folder as base instead')
        if self.chain and self.learn == "full":
            raise ValueError('a chain is part of an adapter, and learn = "full" has none: leave chain out')
        if self.chain and self.init is None and not getattr(self.objective, "chained", 0.0):
            raise ValueError(
                "only block diffusion with objective.chained > 0 trains a chain: leave it out, or give init"
            )
        if self.mask_id is None and self.objective.kind != "ar":
            raise ValueError("mask_id is missing: give an id of the vocabulary that no text encodes to")
        return self

    @property
    def adapted(self) -> bool:
        """Is there an adapter?"""
        return self.learn != "full"
