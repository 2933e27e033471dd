"""A run's adapter and its base as one checkpoint folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch

from openmercury.errors import ConfigError, TrainingError
from openmercury.model.adapter import Adapter
from openmercury.model.config import to_hf
from openmercury.model.weights import ADAPTER_FILES, MANIFEST, save_gguf, write_manifest
from openmercury.train.checkpoint import find_state, load_state
from openmercury.train.config import Recipe
from openmercury.train.trainer import model_config

QUANTIZATIONS = ("F32", "BF16", "Q8_0", "Q5_0", "Q4_0")


def save_adapter(adapter: Adapter, path: Path, quantization: str, architecture: str) -> None:
    """Write the adapter as GGUF; matrices in `quantization`, the mask vector in F32."""
    kind = gguf.GGMLQuantizationType[quantization]
    tensors: dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType | None]] = {}
    for name, parameter in adapter.named_parameters():
        array = parameter.detach().float().cpu().numpy()
        tensors[name] = (gguf.quantize(array, kind), kind) if array.ndim > 1 else (array, None)
    save_gguf(path, tensors, architecture)


def read_run(run: Path) -> tuple[Recipe, Adapter]:
    """The recipe and the trained adapter of a run's folder."""
    state = find_state(run)
    if state is None or not (run / "recipe.json").exists():
        raise TrainingError(f"{run} holds no training state: give the `out` folder of `openmercury train`")
    recipe = Recipe.model_validate_json((run / "recipe.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        adapter = Adapter(model_config(recipe), recipe.rank)
    adapter = adapter.to_empty(device="cpu").requires_grad_(False)
    load_state(state, adapter, None)
    return recipe, adapter


def export_run(run: Path, out: Path, quantization: str = "Q8_0") -> None:
    """Write base files, adapter and config.json to `out`; it appears whole or not at all."""
    if quantization not in QUANTIZATIONS:
        raise ConfigError(f"quantization {quantization!r} is unknown: use one of {', '.join(QUANTIZATIONS)}")
    if out.exists():
        raise ConfigError(f"{out} exists: name a new folder or delete it first")
    recipe, adapter = read_run(run)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(recipe.base, partial, ignore=shutil.ignore_patterns(*ADAPTER_FILES, MANIFEST, "config.json"))
    config = model_config(recipe)
    save_adapter(adapter, partial / ADAPTER_FILES[0], quantization, config.architecture)
    (partial / "config.json").write_text(json.dumps(to_hf(config), indent=2) + "\n", encoding="utf-8")
    write_manifest(partial)
    os.replace(partial, out)
