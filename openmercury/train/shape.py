"""The architecture of a recipe, with the facts its run will give a checkpoint."""

from __future__ import annotations

from typing import Any

from openmercury.errors import ConfigError
from openmercury.model.config import ModelConfig, Yarn, read_config
from openmercury.train.config import Recipe
from openmercury.train.objectives.build import diffusion_facts


def model_config(recipe: Recipe) -> ModelConfig:
    """The architecture that is trained, with the facts this run will give it."""
    base = recipe.architecture if recipe.base is None else read_config(recipe.base)
    assert base is not None
    facts = None
    if recipe.mask_id is not None:
        facts = diffusion_facts(recipe.objective, recipe.mask_id, recipe.rank if recipe.adapted else None)
    changes: dict[str, Any] = {"diffusion": facts}
    if recipe.context is not None:
        if base.rope_scaling is not None:
            raise ConfigError(f"context: {recipe.base} has stretched angles already: leave the table out")
        changes["rope_scaling"] = Yarn(factor=recipe.context.factor, original_max_position_embeddings=base.max_context)
        changes["max_context"] = recipe.context.length
    return ModelConfig(**{**base.model_dump(), **changes})
