"""One decoder-only Transformer for Llama, Qwen2 and Qwen3 checkpoints, with an optional gated adapter.

The network knows nothing of noise levels, caches or masks: what a token may see is decided by the `Attend` it is
given, and which tokens are noisy by a gate. q, k, v live in one matrix, and so do gate and up, because on small models
and few positions the number of launches costs more than the arithmetic.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openmercury.model.adapter import Adapter, Chain, GatedLoRA, LayerAdapter, adapted
from openmercury.model.config import ModelConfig, RopeScaling, Yarn


class Attend(Protocol):
    """Attention of one layer: who sees whom, and where keys and values live, is the callee's business."""

    def __call__(self, layer: int, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        """Returns [B, N, H, E]."""
        ...


class LayerAttend(Protocol):
    """`Attend` of a layer that is already chosen."""

    def __call__(self, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor: ...


@runtime_checkable
class StagedAttend(Protocol):
    """An `Attend` for training: it hands out an object for each layer and gets the layer's keys and values back.

    These objects are of one kind, so that a layer is compiled once for all. Keys and values leave a layer as results of
    its call, since what shards or recomputes layers must see them.
    """

    def at(self, layer: int) -> LayerAttend: ...

    def keep(self, layer: int, key_BNGE: Tensor, value_BNGE: Tensor) -> None: ...


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Angular frequencies [E/2] in float32, stretched as Llama 3 or YaRN do where the checkpoint says so."""
    exponent = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    frequency = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    keep = _kept(frequency, config, scaling) if isinstance(scaling, Yarn) else _kept_llama(frequency, scaling)
    return keep * frequency + (1 - keep) * frequency / scaling.factor


def _kept_llama(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    return ((turns - scaling.low_freq_factor) / span).clamp(0, 1)


def _kept(frequency: Tensor, config: ModelConfig, scaling: Yarn) -> Tensor:
    """1 for pairs that turn `beta_fast` times and more within the original context, 0 below `beta_slow`, else between.

    The border pairs are rounded outwards, as the authors' code does, so that checkpoints mean the same everywhere.
    """

    def pair(turns: float) -> float:
        waves = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return config.head_size * math.log(waves) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair(scaling.beta_fast)), 0)
    high = min(math.ceil(pair(scaling.beta_slow)), config.head_size - 1)
    return 1 - ((torch.arange(len(frequency)) - low) / max(high - low, 1e-3)).clamp(0, 1)


def attention_factor(config: ModelConfig) -> float:
    """What YaRN multiplies cosines and sines with, so that scores grow by its square; 1 without it."""
    scaling = config.rope_scaling
    if not isinstance(scaling, Yarn):
        return 1.0
    return scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0


def rotate(x_BNHE: Tensor, cos_BN1E: Tensor, sin_BN1E: Tensor) -> Tensor:
    """Rotary position embedding, halves convention (arXiv 2104.09864); the left half of `sin` comes negated."""
    left, right = x_BNHE.chunk(2, dim=-1)
    return x_BNHE * cos_BN1E + torch.cat((right, left), dim=-1) * sin_BN1E


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Linear(nn.Linear):
    """A linear layer in the dtype of its input: weights that learn are kept in float32, whatever is computed in."""

    def forward(self, x: Tensor) -> Tensor:
        bias = cast(Tensor | None, self.bias)
        return F.linear(x, self.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _project(linear: nn.Linear, lora: GatedLoRA | None, x_BNI: Tensor, gate_BN1: Tensor | None) -> Tensor:
    if lora is None or gate_BN1 is None:
        return cast(Tensor, linear(x_BNI))
    if torch.is_grad_enabled() and lora.learns and not linear.weight.requires_grad:
        return adapted(linear, lora, x_BNI, gate_BN1)
    base: Tensor = linear(x_BNI)
    return base + cast(Tensor, lora(x_BNI, gate_BN1))


class Layer(nn.Module):
    """Attention and SwiGLU with pre-norms; what lies before and after `Attend` can be called by itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        d, e, h, g = config.d_model, config.head_size, config.n_heads, config.n_kv_heads
        self.attention_norm = RMSNorm(d, config.norm_eps)
        self.qkv = Linear(d, (h + 2 * g) * e, bias=config.qkv_bias)
        self.out = Linear(h * e, d, bias=False)
        self.ffn_norm = RMSNorm(d, config.norm_eps)
        self.gate_up = Linear(d, 2 * config.d_ffn, bias=False)
        self.down = Linear(config.d_ffn, d, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(e, config.norm_eps)
            self.k_norm = RMSNorm(e, config.norm_eps)

    def before(
        self, x_BND: Tensor, cos: Tensor, sin: Tensor, gate: Tensor | None, adapter: LayerAdapter | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Norm, q, k, v and rotation: [B, N, D] → q [B, N, H, E], k and v [B, N, G, E]."""
        h, g, e = self.config.n_heads, self.config.n_kv_heads, self.config.head_size
        qkv = _project(self.qkv, adapter.qkv if adapter else None, self.attention_norm(x_BND), gate)
        turned, value = qkv.unflatten(-1, (h + 2 * g, e)).split((h + g, g), dim=-2)
        if self.config.qk_norm:
            query, key = turned.split((h, g), dim=-2)
            turned = torch.cat((self.q_norm(query), self.k_norm(key)), dim=-2)
        query, key = rotate(turned, cos, sin).split((h, g), dim=-2)
        return query, key, value

    def after(self, x_BND: Tensor, attended_BNHE: Tensor, gate: Tensor | None, adapter: LayerAdapter | None) -> Tensor:
        """Output projection, residual, SwiGLU, residual."""
        x = x_BND + _project(self.out, adapter.out if adapter else None, attended_BNHE.flatten(-2), gate)
        up = _project(self.gate_up, adapter.gate_up if adapter else None, self.ffn_norm(x), gate)
        left, right = up.chunk(2, dim=-1)
        return x + _project(self.down, adapter.down if adapter else None, F.silu(left) * right, gate)

    def forward(
        self,
        x_BND: Tensor,
        cos: Tensor,
        sin: Tensor,
        gate: Tensor | None,
        adapter: LayerAdapter | None,
        attend: LayerAttend,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, D] → [B, N, D], and the keys and values [B, N, G, E]."""
        query, key, value = self.before(x_BND, cos, sin, gate, adapter)
        return self.after(x_BND, attend(query, key, value), gate, adapter), key, value


class Transformer(nn.Module):
    """Token ids in, hidden states out; `logits` is separate because few positions need the head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        self.adapter: Adapter | None = None
        self.compute: torch.dtype | None = None  # dtype of activations; None: that of the embedding
        facts = config.diffusion
        if facts is not None and facts.adapter is not None:
            self.adapter = Adapter(config, facts.adapter.rank, facts.adapter.chain)
        self.sharpen = attention_factor(config)
        self.frequency: Tensor
        self.register_buffer("frequency", rotary_frequencies(config), persistent=False)

    @property
    def chain(self) -> Chain | None:
        """The adapter's chain of drafts, if there are both."""
        return None if self.adapter is None else self.adapter.chain

    def embed(self, ids_BN: Tensor, noisy_BN: Tensor | None) -> Tensor:
        """Embeddings [B, N, D]; a noisy position that holds the mask id takes the adapter's mask vector."""
        x: Tensor = self.embedding(ids_BN)
        x = x if self.compute is None else x.to(self.compute)
        facts = self.config.diffusion
        if noisy_BN is None or self.adapter is None or facts is None:
            return x
        masked = (noisy_BN & (ids_BN == facts.mask_id))[..., None]
        return torch.where(masked, self.adapter.mask_vector.to(x.dtype), x)

    def forward(
        self,
        ids_BN: Tensor,
        position_BN: Tensor,
        attend: Attend | StagedAttend,
        noisy_BN: Tensor | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, N, D] after the last norm. `noisy_BN` (bool) opens the adapter's gate; None: all clean.

        What each layer puts out is appended to `states`.
        """
        x = self.embed(ids_BN, noisy_BN)
        angle = position_BN[..., None].float() * self.frequency.float()
        cos, sin = ((wave * self.sharpen).to(x.dtype)[:, :, None] for wave in (angle.cos(), angle.sin()))
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        gate = None if noisy_BN is None or self.adapter is None else noisy_BN[..., None].to(x.dtype)
        for index, layer in enumerate(self.layers):
            adapter = None if self.adapter is None else cast(LayerAdapter, self.adapter.layers[index])
            seen = attend.at(index) if isinstance(attend, StagedAttend) else partial(attend, index)
            x, key, value = layer(x, cos, sin, gate, adapter, seen)
            if isinstance(attend, StagedAttend):
                attend.keep(index, key, value)
            if states is not None:
                states.append(x)
        return cast(Tensor, self.norm(x))

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """[M, D] → [M, V]; the mask token is −inf: it is never predicted."""
        logits = cast(Tensor, self.head(hidden_MD))
        if self.config.diffusion is not None:
            logits[..., self.config.diffusion.mask_id] = float("-inf")
        return logits


def fold_norms(model: Transformer) -> None:
    """Multiply the weights of each norm in front of a product into the columns of W and A; the norm keeps its scale."""
    for index, layer in enumerate(cast(list[Layer], list(model.layers))):
        adapter = None if model.adapter is None else cast(LayerAdapter, model.adapter.layers[index])
        for norm, name in ((layer.attention_norm, "qkv"), (layer.ffn_norm, "gate_up")):
            getattr(layer, name).weight.data.mul_(norm.weight.data)
            if adapter is not None:
                getattr(adapter, name).a.data.mul_(norm.weight.data)
            norm.weight.data.fill_(1)
