"""The architecture of a recipe, with the facts its run will give a checkpoint."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from openmercury.config import explain
from openmercury.errors import ConfigError
from openmercury.model.config import AdapterFacts, ModelConfig, Yarn, read_config
from openmercury.train.config import Recipe
from openmercury.train.objectives.build import diffusion_facts


def model_config(recipe: Recipe) -> ModelConfig:
    """The architecture that is trained, with the facts this run will give it."""
    base = recipe.architecture if recipe.base is None else read_config(recipe.base)
    assert base is not None
    facts = None
    if recipe.mask_id is not None:
        adapter = AdapterFacts(rank=recipe.rank, chain=recipe.chain) if recipe.adapted else None
        facts = diffusion_facts(recipe.objective, recipe.mask_id, adapter)
    changes = {"diffusion": facts, **_stretched(recipe, base)}
    try:
        config = ModelConfig(**{**base.model_dump(), **changes})
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    if recipe.data.row_length > config.max_context:
        raise ConfigError(
            f"data.row_length = {recipe.data.row_length} is beyond the {config.max_context} positions of the model: "
            "shorten the rows, or lengthen the context with a [context] table"
        )
    return config


def _stretched(recipe: Recipe, base: ModelConfig) -> dict[str, Any]:
    """What a [context] table changes."""
    if recipe.context is None:
        return {}
    factor, length = recipe.context.factor, recipe.context.length
    if base.rope_scaling is not None:
        raise ConfigError("context: the model has stretched angles already: leave the table out")
    if not base.max_context < length <= factor * base.max_context:
        raise ConfigError(
            f"context.length = {length} must lie above the model's {base.max_context} positions and go no further than "
            f"context.factor = {factor:g} times as many"
        )
    return {
        "rope_scaling": Yarn(factor=factor, original_max_position_embeddings=base.max_context),
        "max_context": length,
    }
