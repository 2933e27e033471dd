"""From the recipe's `[objective]` to the function that trains."""

from __future__ import annotations

import torch

from openmercury.diffusion.loss import slice_loss
from openmercury.model.transformer import Transformer
from openmercury.train.config import BlockDiffusion
from openmercury.train.objectives.base import Objective
from openmercury.train.objectives.block import BlockDiffusionObjective


def build_objective(config: BlockDiffusion, model: Transformer, *, compile: bool) -> Objective:
    """The objective of a recipe; `compile` fuses what it does with logits.

    Called while `model` holds the weights the run starts from, before a resumed state is loaded, layers are compiled or
    parameters sharded: an objective with a frozen reference or teacher copies it here.
    """
    return BlockDiffusionObjective(config, torch.compile(slice_loss, dynamic=False) if compile else slice_loss)
