"""What every objective gives the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from openmercury.data.loader import Batch
from openmercury.model.transformer import Transformer


class Loss(NamedTuple):
    """`sum` is differentiable; `sum` / `weight` over all ranks is what is minimised.

    Each metric is [numerator, denominator] in float64: they add up over steps and ranks, and their ratio is reported.
    Every rank and step must give the same names in the same order.
    """

    sum: Tensor
    weight: Tensor
    metrics: Mapping[str, Tensor]


class Objective(Protocol):
    """Loss of `rows` of a batch. Noise is drawn for the whole batch, so a row's is the same on whichever rank."""

    def __call__(self, model: Transformer, batch: Batch, generator: torch.Generator, rows: slice) -> Loss: ...
