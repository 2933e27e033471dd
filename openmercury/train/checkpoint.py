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

from openmercury.errors import TrainingError

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
