"""From the recipe's `[objective]` to the function that trains."""

from __future__ import annotations

import torch

from openmercury.diffusion.loss import slice_loss
from openmercury.errors import ConfigError
from openmercury.model.config import AdapterFacts, DiffusionFacts
from openmercury.model.transformer import Transformer
from openmercury.train.config import AR, BlockDiffusion, MaskedDiffusion, ObjectiveConfig, is_taught
from openmercury.train.objectives.ar import ARObjective
from openmercury.train.objectives.base import Objective, base_learns, frozen_base, frozen_policy
from openmercury.train.objectives.block import BlockDiffusionObjective
from openmercury.train.objectives.dpo import DPOObjective
from openmercury.train.objectives.masked import MaskedDiffusionObjective


def diffusion_facts(config: ObjectiveConfig, mask_id: int, adapter: AdapterFacts | None) -> DiffusionFacts | None:
    """What a checkpoint trained by this objective is; `adapter` is None where the base itself learnt."""
    if isinstance(config, AR):
        return None
    if isinstance(config, MaskedDiffusion):
        return DiffusionFacts(
            mask_id=mask_id,
            block_size=config.block_size,
            clean_attention="bidirectional",
            logit_shift=config.shift,
            adapter=adapter,
        )
    size = max(config.block_sizes)
    return DiffusionFacts(mask_id=mask_id, block_size=size, logit_shift=config.shift, adapter=adapter)


def build_objective(config: ObjectiveConfig, model: Transformer, *, compile: bool) -> Objective:
    """The objective of a recipe; `compile` fuses what it does with logits.

    Called while `model` holds the weights the run starts from and knows which of them learn, before a resumed state is
    loaded, layers are compiled or parameters sharded: an objective with a frozen reference or teacher copies it here.
    Raises ConfigError where the objective trains nothing of what learns.
    """
    slice_fn = torch.compile(slice_loss, dynamic=False) if compile else slice_loss
    learns = base_learns(model)
    if isinstance(config, BlockDiffusion):
        if config.ar and not learns:
            raise ConfigError('objective.ar trains the base, which is frozen: write learn = "full", or leave it out')
        teacher = frozen_base(model) if learns and is_taught(config) else None
        return BlockDiffusionObjective(config, learns, teacher, slice_fn)
    if not learns and isinstance(config, AR):
        raise ConfigError('objective ar trains the base, which is frozen: write learn = "full"')
    if isinstance(config, AR):
        return ARObjective(slice_fn)
    if isinstance(config, MaskedDiffusion):
        return MaskedDiffusionObjective(config, slice_fn)
    return DPOObjective(config, frozen_policy(model), learns, slice_fn)
