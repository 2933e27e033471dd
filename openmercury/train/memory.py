"""What a recipe will need, before it runs: memory by part, operations, time. Computed from shapes alone.

Activations are what autograd keeps of one layer and token, counted tensor by tensor (`layer_elements`); of a compiled
layer a little less is kept, since some of it is computed again. With checkpointing only the input of each layer is
kept, and one layer at a time in full. Attention is taken to keep no scores, as its kernel does.
"""

from __future__ import annotations

from typing import NamedTuple

from openmercury.diffusion.loss import slice_rows
from openmercury.errors import ConfigError
from openmercury.model.config import ModelConfig
from openmercury.train.config import Recipe, is_taught
from openmercury.train.flops import (
    PEAK,
    adapter_parameters,
    body_weights,
    layer_matrices,
    peak_of,
    training_flops,
)
from openmercury.train.shape import model_config

WIDE = 4  # bytes of what learns: float32
BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}


class Estimate(NamedTuple):
    """Parameters, bytes of one process by part, operations a token, and the length of the run."""

    learning: int
    frozen: int
    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    logits: float
    flops_per_token: float
    tokens: int

    @property
    def bytes(self) -> float:
        """Of all parts at once."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations + self.logits

    def seconds(self, gpu: str, gpus: int, mfu: float) -> float:
        """Of the run on GPUs that reach `mfu` of their peak; raises ConfigError for one that is not known."""
        peak = peak_of(gpu)
        if peak is None:
            raise ConfigError(f"the peak of {gpu!r} is not known: use one of {', '.join(PEAK)}")
        return self.tokens * self.flops_per_token / (peak * gpus * mfu)


def parameters(recipe: Recipe, config: ModelConfig) -> tuple[int, int]:
    """How many learn, and how many do not."""
    d, e = config.d_model, config.head_size
    ends = config.vocab_size * d * (1 if config.tied else 2)
    small = config.n_layers * (2 * d + config.qkv_bias * layer_matrices(config)[0][0] + config.qk_norm * 2 * e) + d
    base, adapter = body_weights(config) + ends + small, adapter_parameters(config)
    if recipe.learn == "full":
        return base, 0
    more = ends if recipe.learn == "adapter_embeddings" else 0
    return adapter + more, base - more


def layer_elements(config: ModelConfig, rank: int) -> int:
    """Numbers that backward needs of one token in one layer, as `Layer.forward` and its attention are written."""
    d, f = config.d_model, config.d_ffn
    q, kv = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
    norms = 2 * d  # their inputs
    inputs = (d + rank) + (q + rank) + (d + rank) + (f + rank)  # of the four products
    attention = 2 * (q + 2 * kv) + 2 * kv + q  # rotated, beside clean keys and values, and the outcome
    swiglu = 3 * f  # gate, up, and silu(gate)
    return norms + inputs + attention + swiglu


def slice_bytes(recipe: Recipe, width: int, wide: int) -> int:
    """Bytes of each logit while a slice of the loss is computed: logits and slopes, and eager, each step between."""
    taught = int(recipe.objective.kind == "block_diffusion" and recipe.objective.kl > 0)
    return (2 + taught) * width if recipe.compile else (1 + taught) * width + (6 + 2 * taught) * wide


def _copied(recipe: Recipe, learning: int, frozen: int, adapter: int) -> int:
    """Weights that an objective keeps as the run found them: DPO's reference, the teacher of a base that learns."""
    base_learns = recipe.learn != "adapter"
    if recipe.objective.kind == "dpo":
        return learning + frozen if base_learns else learning
    return learning + frozen - adapter if base_learns and is_taught(recipe.objective) else 0


def estimate(recipe: Recipe, *, processes: int = 1, compute: int | None = None, trained: float = 1.0) -> Estimate:
    """Of one process among `processes`; `compute` is the bytes of an activation, `trained` the share with a loss."""
    config = model_config(recipe)
    width = compute or BYTES.get(recipe.dtype, 2)
    wide = max(WIDE, width)
    learning, frozen = parameters(recipe, config)
    sharded = processes > 1 and (recipe.learn != "adapter" if recipe.shard is None else recipe.shard)
    adapter = adapter_parameters(config) if recipe.adapted else 0
    parts = processes if sharded else 1
    own = adapter + (learning - adapter) / parts
    each = max(1, recipe.data.rows // processes)
    rows = min(each, recipe.data.forward_rows or each)
    tokens = rows * recipe.data.row_length
    facts = config.diffusion
    rank = 0 if facts is None or facts.adapter is None else facts.adapter.rank
    # The clean half of a frozen base keeps keys and values only; otherwise both halves are kept.
    halves = 1 if recipe.objective.kind in ("ar", "masked_diffusion") else 2
    copies = getattr(recipe.objective, "samples", 2 if getattr(recipe.objective, "complementary", False) else 1)
    share = copies * getattr(recipe.objective, "noisy_share", 1.0)
    kept = tokens * (share if recipe.learn == "adapter" else share + halves - 1)
    clean = (halves - 1) * tokens * config.n_layers * 2 * config.n_kv_heads * config.head_size * width
    layer = layer_elements(config, rank) * kept * width
    inputs = config.n_layers * config.d_model * kept * width
    activations = clean + (inputs + layer if recipe.checkpointing else config.n_layers * layer)
    copied = _copied(recipe, learning, frozen, adapter)
    gathered = 2 * width * (body_weights(config) / config.n_layers) if sharded else 0.0  # this layer, and the next one
    at_once = slice_rows(config.vocab_size, cuda=True)  # what is compiled pads to so many
    at_once = at_once if recipe.compile else min(at_once, tokens)
    logits = at_once * config.vocab_size * slice_bytes(recipe, width, wide)
    if recipe.learn != "adapter":
        logits += 2 * config.vocab_size * config.d_model * wide  # the head's gradient, and a slice's part of it
    return Estimate(
        learning=learning,
        frozen=frozen,
        weights=own * wide + (frozen / parts + copied) * width + gathered,
        gradients=own * wide,
        optimizer=2 * own * wide,
        average=own * wide if recipe.ema else 0.0,
        activations=activations,
        logits=logits,
        flops_per_token=training_flops(recipe, config, trained),
        tokens=recipe.steps * recipe.data.rows * recipe.data.row_length,
    )


def report(recipe: Recipe, *, gpu: str, gpus: int, mfu: float, trained: float) -> str:
    """What `--dry-run` prints."""
    found = estimate(recipe, processes=gpus, trained=trained)
    other = estimate(
        recipe.model_copy(update={"checkpointing": not recipe.checkpointing}), processes=gpus, trained=trained
    )
    seconds = found.seconds(gpu, gpus, mfu)
    parts = ("weights", "gradients", "optimizer", "average", "activations", "logits")
    lines = [
        recipe.model_dump_json(indent=1, exclude_none=True),
        f"parameters     {found.learning / 1e6:,.1f} M learn, {found.frozen / 1e6:,.1f} M do not",
        *(f"{name:<14} {getattr(found, name) / 1e9:8.2f} GB" for name in parts),
        f"{'memory':<14} {found.bytes / 1e9:8.2f} GB a process of {gpus}, beside what the allocator keeps in reserve",
        f"{'':<14} {other.bytes / 1e9:8.2f} GB with checkpointing = {str(not recipe.checkpointing).lower()}",
        f"{'operations':<14} {found.flops_per_token / 1e9:8.2f} GFLOP a token, where {trained:.0%} of all have a loss",
        f"{'length':<14} {found.tokens / 1e6:8.1f} M tokens in {recipe.steps} steps",
        f"{'time':<14} {seconds / 3600:8.2f} h on {gpus} × {gpu} at an MFU of {mfu:.0%}: "
        f"{found.tokens / seconds / 1e3:,.0f}k tokens/s",
    ]
    return "\n".join(lines)
