"""From the recipe's `[objective]` to the function that trains."""

from __future__ import annotations

import torch

from openmercury.diffusion.loss import slice_loss
from openmercury.train.config import BlockDiffusion
from openmercury.train.objectives.base import Objective
from openmercury.train.objectives.block import BlockDiffusionObjective


def build_objective(config: BlockDiffusion, *, compile: bool) -> Objective:
    """The objective of a recipe; `compile` fuses what it does with logits."""
    return BlockDiffusionObjective(config, torch.compile(slice_loss, dynamic=False) if compile else slice_loss)
