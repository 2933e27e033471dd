"""Where a network runs."""

from __future__ import annotations

import torch

from openmercury.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """ "auto": CUDA where there is one, else the CPU. Raises ConfigError for what is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is unknown: use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for but torch sees no GPU: use device=cpu or install a CUDA build")
    return device
