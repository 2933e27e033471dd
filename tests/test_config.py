"""Recipes and overrides: what they fill, and the one line each mistake is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from openmercury.config import Frozen, explain, load_config, parse_value
from openmercury.errors import ConfigError


class Optim(Frozen):
    lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 0


class Causal(Frozen):
    kind: Literal["ar"] = "ar"
    smoothing: float = 0.0


class Block(Frozen):
    kind: Literal["block_diffusion"]
    block_sizes: tuple[int, ...] = (8, 16)
    min_rate: float = 0.2


class Source(Frozen):
    path: Path
    weight: float = 1.0


class Recipe(Frozen):
    name: str = "run"
    steps: Annotated[int, Field(ge=1)] | None = None
    compile: bool = False
    optim: Optim = Optim()
    objective: Annotated[Causal | Block, Field(discriminator="kind")] = Causal()
    sources: tuple[Source, ...] = ()
    weights: dict[str, float] = Field(default_factory=dict)
    width: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _known_name(self) -> Recipe:
        if self.name == "forbidden":
            raise ValueError("name forbidden is taken:\nchoose another")
        return self


class Needed(Frozen):
    source: Source


TOML = """
name = "nano"
steps = 200
width = 8

[optim]
lr = 4e-4

[objective]
kind = "block_diffusion"
block_sizes = [16]

[[sources]]
path = "a.jsonl"

[[sources]]
path = "b.jsonl"
weight = 0.5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


def message(cls: type[Frozen], path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(cls, path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.__cause__ is None
    return text


# --- what is filled --------------------------------------------------------------------------------------------------


def test_defaults_alone() -> None:
    assert load_config(Recipe, None) == Recipe()


def test_file_fills_nested_tables_unions_and_lists(recipe: Path) -> None:
    loaded = load_config(Recipe, recipe)
    assert loaded == Recipe(
        name="nano",
        steps=200,
        width=8,
        optim=Optim(lr=4e-4),
        objective=Block(kind="block_diffusion", block_sizes=(16,)),
        sources=(Source(path=Path("a.jsonl")), Source(path=Path("b.jsonl"), weight=0.5)),
    )


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("steps=7", lambda r: r.steps == 7),
        ("compile=true", lambda r: r.compile is True),
        ("name=plain words", lambda r: r.name == "plain words"),
        ("name=runs/nano-2", lambda r: r.name == "runs/nano-2"),
        ("name=2026-11-23", lambda r: r.name == "2026-11-23"),
        ("name=", lambda r: r.name == ""),
        ('name="7"', lambda r: r.name == "7"),
        ("name=a=b", lambda r: r.name == "a=b"),
        ("name=one\ntwo=3", lambda r: r.name == "one\ntwo=3"),
        (" optim.lr = 1e-3", lambda r: r.optim.lr == 1e-3),
        ("optim.betas=[0.5, 0.6]", lambda r: r.optim.betas == (0.5, 0.6)),
        ("optim={warmup_steps = 3}", lambda r: r.optim == Optim(warmup_steps=3)),
        ("objective.block_sizes=[4, 32]", lambda r: r.objective.block_sizes == (4, 32)),
        ("sources.1.weight=0.25", lambda r: [s.weight for s in r.sources] == [1.0, 0.25]),
        ("sources=[]", lambda r: r.sources == ()),
        ("weights.python=2", lambda r: r.weights == {"python": 2.0}),
        ("width=auto", lambda r: r.width == "auto"),
    ],
)
def test_override(recipe: Path, override: str, read: Any) -> None:
    assert read(load_config(Recipe, recipe, [override]))


def test_overrides_apply_in_order_and_leave_the_rest(recipe: Path) -> None:
    loaded = load_config(Recipe, recipe, ["optim.lr=1", "optim.warmup_steps=5", "optim.lr=2"])
    assert (loaded.optim.lr, loaded.optim.warmup_steps, loaded.name) == (2.0, 5, "nano")


def test_another_kind_begins_its_table_anew(recipe: Path) -> None:
    assert load_config(Recipe, recipe, ["objective.kind=ar"]).objective == Causal()
    assert load_config(Recipe, recipe, ["objective.kind=ar", "objective.smoothing=1"]).objective == Causal(smoothing=1)
    assert load_config(Recipe, recipe, ["objective.kind=block_diffusion"]).objective.block_sizes == (16,)  # type: ignore[union-attr]
    assert "unknown key objective.smoothing" in message(Recipe, recipe, "objective.smoothing=1", "steps=2")


def test_override_makes_the_table_it_needs() -> None:
    assert load_config(Needed, None, ["source.path=x"]).source.path == Path("x")


@given(st.text())
def test_a_value_is_toml_or_itself_or_refused(text: str) -> None:
    try:
        value = parse_value(text)
    except ValueError:
        assert text.lstrip()[0] in "[{\"'"
    else:
        assert value == text or text.strip()[0] in "[{\"'+-0123456789tfin"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Recipe().steps = 3  # type: ignore[misc]


# --- mistakes in files -----------------------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert message(Recipe, path) == f"{path} does not exist: give the path of a TOML recipe"


def test_folder_instead_of_file(tmp_path: Path) -> None:
    assert "cannot be read" in message(Recipe, tmp_path)


def test_invalid_toml_is_located(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("steps = 1\nlr = = 2\n")
    told = message(Recipe, path)
    assert told.startswith(f"{path} is not valid TOML")
    assert "line 2" in told


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in message(Recipe, path)


def test_message_names_the_file(recipe: Path) -> None:
    assert message(Recipe, recipe, "steps=0").startswith(f"{recipe}: steps should be greater than or equal to 1")


# --- mistakes in keys and values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("step=1", "unknown key step: did you mean steps?"),
        ("optim.warmup_step=1", "unknown key optim.warmup_step: did you mean optim.warmup_steps?"),
        ("lr=1", "unknown key lr: did you mean optim.lr?"),
        ("optim.steps=1", "unknown key optim.steps: did you mean steps?"),
        ("optim.zzz=1", "unknown key optim.zzz: known are optim.lr, optim.betas, optim.warmup_steps"),
        ("objective.block_size=[2]", "unknown key objective.block_size: did you mean objective.block_sizes?"),
        ("objective.smoothness=1", "unknown key objective.smoothness: known are objective.kind, "),
        ("sources.0.wait=1", "unknown key sources.0.wait: did you mean sources.0.weight?"),
        ("sources.0.wieght=1", "unknown key sources.0.wieght: did you mean sources.0.weight?"),
        ("steps=many", "steps should be a valid integer, unable to parse string as an integer, got 'many'"),
        ("steps=1.5", "steps should be a valid integer, got a number with a fractional part, got 1.5"),
        ("name=3", "name should be a valid string, got 3"),
        ("optim=3", "optim should be a valid dictionary or instance of Optim, got 3"),
        ("optim.lr=0", "optim.lr should be greater than 0, got 0"),
        ("optim.lr=nan", "optim.lr should be a finite number, got nan"),
        ("objective.block_sizes.1=4", "objective.block_sizes has no entry '1' to set"),
        ("objective.min_rate=low", "objective.min_rate should be a valid number"),
        ("objective.kind=magic", "objective.kind should be one of 'ar', 'block_diffusion', got 'magic'"),
        ("objective={}", "objective.kind is missing"),
        ("sources.0={}", "sources.0.path is missing"),
        ("width=wide", "width should be"),
        ("weights.python=x", "weights.python should be a valid number"),
        ("name=forbidden", "name forbidden is taken: choose another"),
    ],
)
def test_mistake_is_told(recipe: Path, override: str, told: str) -> None:
    assert told in message(Recipe, recipe, override)


@pytest.mark.parametrize("override", ["steps", "=3", "optim..lr=1", ".lr=1", ""])
def test_override_that_is_no_assignment(override: str) -> None:
    assert "write key=value" in message(Recipe, None, override)


@pytest.mark.parametrize("override", ["steps.more=1", "sources.2.weight=1", "sources.x=1", "objective.kind.a=1"])
def test_override_that_goes_nowhere(recipe: Path, override: str) -> None:
    assert "has no entry" in message(Recipe, recipe, override)


@pytest.mark.parametrize("override", ["sources=[a, b]", "optim={lr", 'name="open'])
def test_override_with_a_broken_value(override: str) -> None:
    assert "no valid TOML value" in message(Recipe, None, override)


def test_labels_of_a_plain_union_are_not_shown(recipe: Path) -> None:
    told = message(Recipe, recipe, "width=0")
    assert "width should be greater than or equal to 1, got 0" in told
    assert "width." not in told


def test_several_mistakes_are_cut_short() -> None:
    told = message(Recipe, None, *(f"key{i}=1" for i in range(5)))
    assert told.count("unknown key") == 3
    assert told.endswith("; and 2 more")


def test_misspelt_keys_come_before_missing_ones() -> None:
    told = message(Needed, None, "sorce=1")
    assert told == "settings: unknown key sorce: did you mean source?; source is missing"


def test_long_values_are_cut_short() -> None:
    assert len(message(Recipe, None, f"steps={'x' * 5000}")) < 250


def test_explain_without_the_class() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe(steps=-1, colour="red")  # type: ignore[call-arg]
    assert explain(caught.value) == "steps should be greater than or equal to 1, got -1; unknown key colour"


def test_explain_with_the_class() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe(stepz=1)  # type: ignore[call-arg]
    assert explain(caught.value, Recipe) == "unknown key stepz: did you mean steps?"
