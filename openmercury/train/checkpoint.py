"""State of a run: adapter, optimiser moments and counters, as safetensors and JSON in one folder.

A checkpoint is written beside the old one and renamed over it, so that a run killed at any moment resumes from a whole
state. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openmercury.errors import CheckpointError, ConfigError, TrainingError
from openmercury.model.adapter import Adapter
from openmercury.model.config import read_config
from openmercury.model.weights import ADAPTER_FILES, open_tensors

STATE = "state"


def save_state(out: Path, adapter: nn.Module, optimizer: torch.optim.Optimizer, counters: dict[str, Any]) -> None:
    """Write `out/state` atomically."""
    partial, final, old = out / "state.partial", out / STATE, out / "state.old"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    named = dict(adapter.named_parameters())
    tensors: dict[str, Tensor] = {name: parameter.detach().cpu().contiguous() for name, parameter in named.items()}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(tensors, partial / "tensors.safetensors")
    (partial / "counters.json").write_text(json.dumps(counters), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def find_state(out: Path) -> Path | None:
    """The newest whole state of a run, if any: a kill between the two renames leaves only the old one."""
    return next((out / name for name in (STATE, "state.old") if (out / name / "counters.json").exists()), None)


def load_state(state: Path, adapter: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Restore adapter (and optimiser) in place; returns the counters."""
    try:
        tensors = load_file(state / "tensors.safetensors")
        counters: dict[str, Any] = json.loads((state / "counters.json").read_text(encoding="utf-8"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise TrainingError(f"{state} cannot be read ({error}): delete it to start the run anew") from None
    for name, parameter in adapter.named_parameters():
        if name not in tensors or tensors[name].shape != parameter.shape:
            raise TrainingError(f"{state} was written with another rank or model: use its recipe or a new `out`")
        parameter.data.copy_(tensors[name])
        if optimizer is not None:
            prefix = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in tensors]
            optimizer.state[parameter] = {
                key: tensors[f"{key}/{name}"].to(parameter.device if key != "step" else "cpu") for key in prefix
            }
    return counters


def load_adapter(folder: Path, adapter: Adapter, rank: int) -> None:
    """Set `adapter`, of rank `rank`, to that of a checkpoint folder; the folder's base weights are not read.

    Raises ConfigError where the folder's adapter has another rank or there is none, CheckpointError where it is broken.
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
    paths = [folder / name for name in ADAPTER_FILES if (folder / name).exists()]
    if not paths:
        raise CheckpointError(f"{folder} holds none of {', '.join(ADAPTER_FILES)}: export it again")
    reader = open_tensors(paths[:1])
    for name, parameter in adapter.named_parameters():
        if name not in reader:
            raise CheckpointError(f"tensor {name} is missing from {paths[0]}: export it again")
        reader.read(name, parameter.data)
