"""A run as one checkpoint folder: its base and adapter, or all its weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from openmercury.errors import ConfigError, TrainingError
from openmercury.model.config import ModelConfig, to_hf
from openmercury.model.convert import SHARD_BYTES, TOKENIZER_FILES, write_shards
from openmercury.model.weights import (
    ADAPTER_FILES,
    MANIFEST,
    fused_rows,
    load_model,
    save_gguf,
    sources,
    write_manifest,
)
from openmercury.train.checkpoint import find_state, read_state
from openmercury.train.config import Recipe
from openmercury.train.parallel import World
from openmercury.train.shape import model_config
from openmercury.train.storage import Reader

QUANTIZATIONS = ("F32", "BF16", "Q8_0", "Q5_0", "Q4_0")
PLAIN = {"F32": torch.float32, "BF16": torch.bfloat16}  # what safetensors hold
INDEX = "model.safetensors.index.json"


def export_run(run: Path, out: Path, quantization: str | None = None) -> None:
    """Write the newest state of `run` to `out`, which appears whole or not at all; its average where it kept one.

    `quantization` is of the adapter, by default Q8_0, or, where all weights learned, of the weights: BF16, the default,
    and F32 are written as safetensors under the names of `transformers`, others as GGUF. Rows that are no multiple of
    32 values (those of B, where the rank is none) stay in F32: Q8_0 and its like hold 32 at a time.
    """
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization {quantization!r} is unknown: use one of {', '.join(QUANTIZATIONS)}")
    recipe, tensors = read_run(run)
    export_tensors(recipe, tensors, out, quantization or ("Q8_0" if recipe.adapted else "BF16"))


def read_run(run: Path) -> tuple[Recipe, dict[str, Tensor]]:
    """The recipe of a run's folder, and what it has trained, by parameter name."""
    state = find_state(run)
    if state is None or not (run / "recipe.json").exists():
        raise TrainingError(f"{run} holds no training state: give the `out` folder of `openmercury train`")
    recipe = Recipe.model_validate_json((run / "recipe.json").read_text(encoding="utf-8"))
    facts = Reader(state).read_metadata().state_dict_metadata
    wanted = "model/" if recipe.ema is None else "ema/"
    found = {
        name: torch.empty(each.size, dtype=each.properties.dtype)  # type: ignore[union-attr]
        for name, each in facts.items()
        if name.startswith(wanted)
    }
    read_state(state, found, World())
    return recipe, {name.removeprefix(wanted): value for name, value in found.items()}


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU; all ranks must call it where they are sharded."""
    whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}
    return {name: tensor.detach().cpu() for name, tensor in whole.items()}


def export_tensors(
    recipe: Recipe, tensors: Mapping[str, Tensor], out: Path, quantization: str, *, link: bool = False
) -> None:
    """Write a checkpoint folder of what a recipe has trained; `link` points to the base's files instead of copying."""
    if out.exists():
        raise ConfigError(f"{out} exists: name a new folder or delete it first")
    config = model_config(recipe)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if recipe.learn == "adapter":
        assert recipe.base is not None
        skipped = shutil.ignore_patterns(*ADAPTER_FILES, MANIFEST, "config.json")
        shutil.copytree(recipe.base, partial, ignore=skipped, copy_function=_link if link else shutil.copy2)
    else:
        partial.mkdir(parents=True)
        _copy_texts(recipe, partial)
        save_weights(_whole_model(recipe, tensors), config, partial, "BF16" if recipe.adapted else quantization)
    if recipe.adapted:
        save_adapter(tensors, partial / ADAPTER_FILES[0], quantization, config.architecture)
    (partial / "config.json").write_text(json.dumps(to_hf(config), indent=2) + "\n", encoding="utf-8")
    if not link:
        write_manifest(partial)
    os.replace(partial, out)


def _link(source: str, target: str) -> None:
    os.symlink(Path(source).resolve(), target)


def _copy_texts(recipe: Recipe, out: Path) -> None:
    folder = recipe.base or recipe.tokenizer
    assert folder is not None
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            shutil.copyfile(folder / name, out / name)


def _whole_model(recipe: Recipe, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All base weights by our names: trained ones, and of the others those of the base."""
    names = sources(model_config(recipe), "hf")
    weights = {name: tensor for name, tensor in tensors.items() if name in names}
    if len(weights) < len(names):
        assert recipe.base is not None
        plain = ModelConfig(**{**model_config(recipe).model_dump(), "diffusion": None})
        base = load_model(recipe.base, dtype=torch.bfloat16, config=plain)
        weights = {**{name: p.detach() for name, p in base.named_parameters()}, **weights}
    return weights


def save_adapter(tensors: Mapping[str, Tensor], path: Path, quantization: str, architecture: str) -> None:
    """Write the adapter as GGUF."""
    kind = gguf.GGMLQuantizationType[quantization]
    found = {
        name.removeprefix("adapter."): _quantized(tensor, kind)
        for name, tensor in tensors.items()
        if name.startswith("adapter.")
    }
    save_gguf(path, found, architecture)


def _quantized(tensor: Tensor, kind: gguf.GGMLQuantizationType) -> tuple[np.ndarray, gguf.GGMLQuantizationType | None]:
    """Vectors, and matrices whose rows are no whole number of blocks, stay in F32."""
    array = tensor.detach().float().cpu().numpy()
    size, _ = gguf.GGML_QUANT_SIZES[kind]
    fits = array.ndim > 1 and array.shape[-1] % size == 0
    return (gguf.quantize(array, kind), kind) if fits else (array, None)


def save_weights(weights: Mapping[str, Tensor], config: ModelConfig, out: Path, quantization: str) -> None:
    """Write base weights in files below `SHARD_BYTES`; a tensor of safetensors that is larger has a file of its own."""
    if quantization in PLAIN:
        _save_safetensors(weights, config, out, PLAIN[quantization])
    else:
        _save_gguf(weights, config, out, quantization)


def _named(weights: Mapping[str, Tensor], config: ModelConfig, style: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors under the names of GGUF or `transformers`."""
    for ours, names in sources(config, style).items():
        parts = weights[ours].split(fused_rows(config, ours) or [len(weights[ours])])
        yield from zip(names, parts, strict=True)


def _save_safetensors(weights: Mapping[str, Tensor], config: ModelConfig, out: Path, dtype: torch.dtype) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, part in _named(weights, config, "hf"):
        tensor = part.detach().to(dtype).contiguous().clone()
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    where: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
    size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _save_gguf(weights: Mapping[str, Tensor], config: ModelConfig, out: Path, quantization: str) -> None:
    kind = gguf.GGMLQuantizationType[quantization]

    def blocks() -> Iterator[tuple[str, Any, np.ndarray]]:
        for name, part in _named(weights, config, "gguf"):
            array, stored = _quantized(part, kind)
            yield name, stored, array

    write_shards(out, blocks(), config.architecture)
