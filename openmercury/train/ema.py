"""Exponential moving average of what learns: exported in place of the last weights, and smoother than they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from openmercury.train.parallel import local


class Ema:
    """average ← decay · average + (1 − decay) · weights after each step, with a warm-up: decay ≤ (1 + n) / (10 + n).

    The average begins at the first weights; the warm-up forgets them soon (as in the EMA of arXiv 1409.4842's code).
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.parameters = decay, dict(parameters)
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(tensor) for tensor in self.average.values()]
        torch._foreach_lerp_(averages, [local(p.detach()) for p in self.parameters.values()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the weights, in place; twice is never."""
        for name, parameter in self.parameters.items():
            kept = local(parameter).clone()
            local(parameter).copy_(local(self.average[name]))
            local(self.average[name]).copy_(kept)
