"""The [objective] table: what it is by default, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from openmercury.config import load_config
from openmercury.errors import ConfigError
from openmercury.model.config import read_config
from openmercury.train.config import AR, DPO, BlockDiffusion, Recipe

PLAIN = ["base=a", "out=b", "mask_id=3", "steps=4", "data.path=x"]


def load(*overrides: str) -> object:
    return load_config(Recipe, None, [*PLAIN, *overrides]).objective


def test_kinds() -> None:
    assert load() == BlockDiffusion()
    assert load("objective.ce=1") == BlockDiffusion(ce=1.0)
    assert load("objective.kind=ar") == AR()
    assert load("objective.kind=dpo", "objective.beta=0.5") == DPO(beta=0.5)
    assert load("objective.ce=1", 'objective={kind = "ar"}') == AR()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["objective.kind=foo"], "objective.kind should be one of 'ar', 'masked_diffusion', .*, got 'foo'"),
        (["objective.cee=1"], "unknown key objective.cee: did you mean objective.ce?"),
        (["objective.kind=ar", "objective.ce=1"], "unknown key objective.ce: known are objective.kind"),
        (["objective=3"], "objective should be .*got 3"),
        (["objective.weights=bound", "objective.decay=0.9"], "decay would shape flat weights: leave out"),
        (["objective.weights=bound", "objective.on_policy.share=0.5"], "own states have no 1/t weight"),
        (["objective.complementary=true", "objective.on_policy.share=0.5"], "own states have no complement"),
        (["objective.min_rate=0.8", "objective.max_rate=0.5"], "min_rate 0.8 is above max_rate 0.5"),
        (["objective.on_policy.shar=2"], "did you mean objective.on_policy.share?"),
        (["objective.block_sizes=[0]"], "objective.block_sizes.0 should be greater than or equal to 1"),
        (["chain=4", "learn=full"], "a chain is part of an adapter"),
        (["chain=4", "objective.kind=dpo"], "only block diffusion .* trains a chain: leave it out, or give init"),
        (["chain=4", "objective.chained=0"], "with objective.chained > 0 trains a chain"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        load(*overrides)
    assert "\n" not in str(caught.value)


def test_recipes_load() -> None:
    for path in sorted(Path(__file__).parents[2].joinpath("recipes").glob("*.toml")):
        if path.stem.split("-")[0] in ("adapt", "pretrain", "sft", "dpo"):
            assert load_config(Recipe, path, []).steps > 0


def test_recipes_that_go_on_from_the_shipped_adapter_fit_it() -> None:
    root = Path(__file__).parents[2]
    facts = read_config(root / "models/openmercury-nano").diffusion
    assert facts is not None
    assert facts.adapter is not None
    found = [
        load_config(Recipe, path, [])
        for path in sorted(root.joinpath("recipes").glob("[asd]*.toml"))
        if 'init = "models/openmercury-nano"' in path.read_text()
    ]
    assert len(found) == 3
    for recipe in found:
        assert (recipe.rank, recipe.chain) == (facts.adapter.rank, facts.adapter.chain), recipe.out
