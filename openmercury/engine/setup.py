"""What is decided before weights are loaded: their number format, and engine settings that suit it on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from openmercury.engine.config import EngineConfig
from openmercury.engine.widths import best_drafts
from openmercury.errors import ConfigError
from openmercury.log import get_logger
from openmercury.model.config import ModelConfig
from openmercury.model.costs import FORMATS, Costs, costs_of, packable
from openmercury.model.float8 import LEAST_CAPABILITY
from openmercury.model.machine import set_threads

# int8 and fp8 agree less with the exact network (docs/log.md): they are taken by name only.
AUTOMATIC = ("float32", "bfloat16")


class Setup(NamedTuple):
    """A format by name, the engine's settings, and why."""

    dtype: str
    engine: EngineConfig
    why: str


def setup(
    dtype: str,
    device: str,
    config: ModelConfig,
    costs: Mapping[str, Costs] | None = None,
    engine: EngineConfig | None = None,
) -> Setup:
    """Settle `dtype` ("auto" or the name of a format) for "cuda" or "cpu"; raises ConfigError where it cannot be had.

    On a CPU the costs of its forwards decide; they are measured, on as many threads as decoding will have, where nobody
    gave them or knows them from before. Settings that are given as `engine` stand; with them and a named format nothing
    is measured.
    """
    if dtype != "auto" and dtype not in FORMATS:
        raise ConfigError(f"dtype {dtype!r} is unknown: use auto, {', '.join(FORMATS)}")
    if device != "cpu":
        if dtype == "int8":
            raise ConfigError(f"dtype int8 is for CPUs and the device is {device}: use bfloat16, or device cpu")
        if dtype == "fp8" and torch.cuda.get_device_capability() < LEAST_CAPABILITY:
            raise ConfigError("dtype fp8 needs a GPU of compute capability 8.9 or later (Ada, Hopper): use bfloat16")
        chosen = "bfloat16" if dtype == "auto" else dtype
        why = "GPUs multiply it in hardware" if dtype == "auto" else "asked for"
        return Setup(chosen, engine or EngineConfig.for_device(device), why)
    if dtype == "fp8":
        raise ConfigError(f"dtype fp8 is for GPUs and the device is {device}: use int8, bfloat16 or auto")
    if dtype == "int8" and not packable(FORMATS[dtype]):
        raise ConfigError(
            "dtype int8 needs 8-bit products of oneDNN that this PyTorch or this processor lacks: "
            "use float32, bfloat16 or auto"
        )
    set_threads()
    if costs is None:
        costs = {} if engine is not None and dtype != "auto" else costs_of(config)
    chosen, why = fastest(costs) if dtype == "auto" else (dtype, "asked for")
    if not packable(FORMATS[chosen]) and chosen != "float64":
        get_logger().warning(
            "there are no packed matrix products for %s here, so decoding is two to three times slower: "
            "PyTorch for x86 processors has them",
            chosen,
        )
    return Setup(chosen, engine or EngineConfig.for_device(device, costs.get(chosen)), why)


def fastest(costs: Mapping[str, Costs]) -> tuple[str, str]:
    """The format in which `verified`, the default mode, promises the most tokens a second; and those figures."""
    speed = {name: 1e3 * best_drafts(each).speed for name, each in costs.items() if name in AUTOMATIC}
    chosen = max(speed, key=lambda name: speed[name])
    told = ", ".join(f"{name} {speed[name]:.0f}" for name in sorted(speed, key=lambda name: -speed[name]))
    return chosen, f"most tokens a second of `verified` by what forwards cost: {told}"
