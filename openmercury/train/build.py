"""The network of a recipe: its architecture, its first weights, and which of them learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openmercury.errors import CheckpointError, ConfigError
from openmercury.model.adapter import Adapter
from openmercury.model.config import ModelConfig, read_config
from openmercury.model.transformer import Transformer, rotary_frequencies
from openmercury.model.weights import ADAPTER_FILES, empty_model, load_model, open_tensors
from openmercury.train.config import Recipe
from openmercury.train.shape import model_config

SPREAD = 0.02  # standard deviation of random weights; those that end a residual branch by 1 / √(2 · layers) less


def pick_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """What is computed in. Raises ConfigError for float64 on a GPU, which has no kernel for it."""
    if recipe.dtype == "float64" and device.type == "cuda":
        raise ConfigError('dtype = "float64" trains on a CPU alone: write device = "cpu", or dtype = "float32"')
    auto = torch.bfloat16 if device.type == "cuda" else torch.float32
    return auto if recipe.dtype == "auto" else cast(torch.dtype, getattr(torch, recipe.dtype))


def build_model(recipe: Recipe, device: torch.device, compute: torch.dtype) -> Transformer:
    """The network before its first step on `device`; what learns is in float32 at least, what does not in `compute`."""
    config = model_config(recipe)
    wide = torch.promote_types(compute, torch.float32)
    plain = ModelConfig(**{**config.model_dump(), "diffusion": None})
    if recipe.base is None:
        model = random_model(plain, recipe.seed, wide)
    else:
        model = load_model(recipe.base, dtype=wide if recipe.learn == "full" else compute, config=plain)
    model.config, model.compute = config, compute
    if recipe.adapted:
        torch.manual_seed(recipe.seed)
        model.adapter = Adapter(config, recipe.rank, recipe.chain).to(wide)
        with torch.no_grad():
            model.adapter.mask_vector.copy_(model.embedding.weight.float().mean(0))
        if recipe.init is not None:
            load_adapter(recipe.init, model.adapter, recipe.rank)
    for parameter in learning(recipe, model):
        parameter.data = parameter.data.to(wide)
        parameter.requires_grad_(True)
    return model.to(device)


def learning(recipe: Recipe, model: Transformer) -> list[nn.Parameter]:
    """What is trained; a matrix that is embedding and head at once is named once."""
    if recipe.learn == "full":
        return list(model.parameters())
    assert model.adapter is not None
    if recipe.learn == "adapter":
        return list(model.adapter.parameters())
    ends = {id(p): cast(nn.Parameter, p) for p in (model.embedding.weight, model.head.weight)}
    return [*model.adapter.parameters(), *ends.values()]


def random_model(config: ModelConfig, seed: int, dtype: torch.dtype) -> Transformer:
    """Normal weights, norms 1, biases 0, on the CPU: the same for a seed whatever trains them."""
    model = empty_model(config, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        elif name.endswith("bias"):
            parameter.data.zero_()
        else:
            ends = name.endswith(("out.weight", "down.weight"))
            spread = SPREAD / math.sqrt(2 * config.n_layers) if ends else SPREAD
            parameter.data.normal_(0.0, spread, generator=generator)
    model.to(dtype)
    model.frequency = rotary_frequencies(config)
    return model


def load_adapter(folder: Path, adapter: Adapter, rank: int) -> None:
    """Set `adapter`, of rank `rank`, to that of a checkpoint folder; the folder's base weights are not read. A chain
    stays as it is where the folder has none.

    Raises ConfigError where the folder's adapter has other ranks or there is none, CheckpointError where it is broken.
    """
    facts = read_config(folder).diffusion
    if facts is None or facts.adapter is None:
        raise ConfigError(
            f"init = {folder} has no adapter: name a folder made by `openmercury export`, or leave it out"
        )
    if facts.adapter.rank != rank:
        raise ConfigError(
            f"init = {folder} has an adapter of rank {facts.adapter.rank}, the recipe {rank}: make them equal"
        )
    own = 0 if adapter.chain is None else len(adapter.chain.out)
    if facts.adapter.chain not in (0, own):
        raise ConfigError(
            f"init = {folder} has a chain of rank {facts.adapter.chain}, the recipe {own}: make them equal"
        )
    paths = [folder / name for name in ADAPTER_FILES if (folder / name).exists()]
    if not paths:
        raise CheckpointError(f"{folder} holds none of {', '.join(ADAPTER_FILES)}: export it again")
    reader = open_tensors(paths[:1])
    for name, parameter in adapter.named_parameters():
        if name.startswith("chain.") and not facts.adapter.chain:
            continue  # a chain begins where an adapter had none
        if name not in reader:
            raise CheckpointError(f"tensor {name} is missing from {paths[0]}: export it again")
        reader.read(name, parameter.data)


def wrap_layers(model: Transformer, *, compile: bool, checkpointing: bool) -> None:
    """Compile each layer as a whole (one compilation serves all), and compute its activations again in backward."""
    for layer in model.layers:
        forward: Callable[..., Tensor] = layer.forward
        if compile:
            forward = torch.compile(forward, dynamic=False)
        if checkpointing:
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = forward
