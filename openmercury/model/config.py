"""What a checkpoint is: the architecture (as `transformers` writes it) and the facts of its diffusion training.

One class covers Llama, Qwen2 and Qwen3, which differ by two flags: a bias on q, k, v (Qwen2) and an RMSNorm over each
head of q and k (Qwen3). Facts are read from `config.json`; nothing here is an option of the user's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from openmercury.config import Frozen, explain
from openmercury.errors import CheckpointError, UnsupportedError

Architecture = Literal["llama", "qwen2", "qwen3"]
HF_CLASS: dict[str, str] = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


class AdapterFacts(Frozen):
    """The gated LoRA beside the base weights: y = Wx + g·B(Ax), g = 1 on noisy positions; and the rank of the chain
    that ties a draft to the token before it (0: there is none)."""

    rank: Annotated[int, Field(ge=1)]
    chain: Annotated[int, Field(ge=0)] = 0


class DiffusionFacts(Frozen):
    """How the checkpoint was trained to denoise; decoding and training follow these and never override them."""

    mask_id: Annotated[int, Field(ge=0)]
    block_size: Annotated[int, Field(ge=1)] = 16
    clean_attention: Literal["causal", "block_causal", "bidirectional"] = "causal"
    block_aligned: bool = False
    logit_shift: bool = True
    adapter: AdapterFacts | None = None

    def check_decodable(self) -> None:
        """Raises UnsupportedError for a checkpoint whose noisy side works otherwise than our decoding."""
        odd = {
            f"{self.clean_attention} attention": self.clean_attention != "causal",
            "aligned blocks": self.block_aligned,
            "no logit shift": not self.logit_shift,
        }
        found = " and ".join(name for name, is_so in odd.items() if is_so)
        if found:
            raise UnsupportedError(
                f"this checkpoint was trained with {found}, which cannot be decoded: "
                'use one trained by `openmercury train` with objective.kind = "block_diffusion" and shift'
            )


class RopeScaling(Frozen):
    """Llama 3's frequency-dependent stretch of the rotary angles."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


class Yarn(Frozen):
    """Angles of long waves divided by `factor`, those of short ones kept, and attention sharpened (arXiv 2309.00071).

    `beta_fast` and `beta_slow` are the turns within the original context between which the two are blended.
    """

    factor: Annotated[float, Field(gt=1.0)]
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


class ModelConfig(Frozen):
    """Architecture of one checkpoint. Letters as in the shape suffixes: D width, H heads, G KV heads, E head size."""

    architecture: Architecture
    vocab_size: int
    d_model: int
    d_ffn: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | Yarn | None = None
    max_context: int = 32_768
    tied: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    eos_ids: tuple[int, ...] = ()
    diffusion: DiffusionFacts | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}")
        if self.diffusion is not None and self.diffusion.mask_id >= self.vocab_size:
            raise ValueError(
                f"diffusion.mask_id {self.diffusion.mask_id} lies outside the vocabulary of {self.vocab_size}: "
                "set it to an id the tokenizer never produces"
            )
        return self


def _rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | Yarn | None]:
    """Rotary base and scaling; transformers 4 writes `rope_theta` and `rope_scaling`, 5 writes `rope_parameters`."""
    parameters: dict[str, Any] = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "yarn":
        given = {name: parameters[name] for name in Yarn.model_fields if parameters.get(name) is not None}
        given.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
        if any(parameters.get(name) for name in ("mscale", "mscale_all_dim")) or parameters.get("truncate") is False:
            raise UnsupportedError("yarn with mscale or without truncation is not supported: import another checkpoint")
        return theta, Yarn(**given)
    if kind != "llama3":
        raise UnsupportedError(f"rope type {kind!r} is not supported: import one with plain, llama3 or yarn rope")
    return theta, RopeScaling(**{name: parameters[name] for name in RopeScaling.model_fields})


def from_hf(raw: dict[str, Any]) -> ModelConfig:
    """Read the dictionary of a `config.json`; raises UnsupportedError for other architectures."""
    architecture = raw.get("model_type")
    if architecture not in HF_CLASS:
        raise UnsupportedError(
            f"model_type {architecture!r} is not supported: use a checkpoint of {', '.join(sorted(HF_CLASS))}"
        )
    if raw.get("use_sliding_window") or raw.get("mlp_bias"):
        raise UnsupportedError("sliding windows and MLP biases are not supported: use a checkpoint without them")
    if architecture != "qwen2" and raw.get("attention_bias"):
        raise UnsupportedError("attention_bias is only supported for qwen2: use a checkpoint without it")
    try:
        theta, scaling = _rope(raw)
        eos = raw.get("eos_token_id")
        heads = int(raw["num_attention_heads"])
        return ModelConfig(
            architecture=architecture,
            vocab_size=raw["vocab_size"],
            d_model=raw["hidden_size"],
            d_ffn=raw["intermediate_size"],
            n_layers=raw["num_hidden_layers"],
            n_heads=heads,
            n_kv_heads=raw.get("num_key_value_heads") or heads,
            head_size=raw.get("head_dim") or raw["hidden_size"] // heads,
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            max_context=raw.get("max_position_embeddings", 32_768),
            tied=raw.get("tie_word_embeddings", False),
            qkv_bias=architecture == "qwen2",
            qk_norm=architecture == "qwen3",
            eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
            diffusion=raw.get("diffusion"),
        )
    except KeyError as missing:
        raise CheckpointError(f"config.json lacks {missing}: fetch the checkpoint again") from None
    except ValidationError as error:
        raise CheckpointError(f"config.json is wrong: {explain(error)}") from None


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The dictionary of a `config.json` that `transformers` and `from_hf` both read."""
    scaling = config.rope_scaling
    kind = "yarn" if isinstance(scaling, Yarn) else "llama3"
    raw: dict[str, Any] = {
        "architectures": [HF_CLASS[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ffn,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else {"rope_type": kind, **scaling.model_dump(exclude_none=True)},
        "max_position_embeddings": config.max_context,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "eos_token_id": list(config.eos_ids),
    }
    if config.diffusion is not None:
        raw["diffusion"] = config.diffusion.model_dump()
    return raw


def read_config(folder: Path) -> ModelConfig:
    """Read `folder/config.json`; raises CheckpointError when it is missing or wrong."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is no checkpoint: it has no config.json; give a folder made by `openmercury import`"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): fetch the checkpoint again") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is not a JSON object: fetch the checkpoint again")
    return from_hf(raw)
