"""`train` and `data`: recipes reach their runners, mistakes are told before torch loads."""

from __future__ import annotations

from pathlib import Path

import pytest

import openmercury.data.prompt_set
import openmercury.distill
import openmercury.train.trainer
from openmercury.cli import main
from openmercury.data.config import PromptRecipe

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text("packages = []\nlicences = []\n")
    return path


@pytest.mark.parametrize(
    ("command", "module"), [(["train"], openmercury.train.trainer), (["data", "generate"], openmercury.distill)]
)
def test_recipes_and_overrides_reach_their_runner(
    command: list[str], module: object, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(module, "run_recipe", lambda path, overrides: seen.extend([path, overrides]))
    assert main.main([*command, str(recipe), "optim.lr=1e-4", "steps=3"]) == 0
    assert seen == [recipe, ["optim.lr=1e-4", "steps=3"]]


def test_prompts(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    seen: list[object] = []

    def prepare(settings: PromptRecipe, *paths: Path) -> Path:
        seen.extend([settings, *paths])
        return Path("made")

    monkeypatch.setattr(openmercury.data.prompt_set, "prepare_prompts", prepare)
    line = ["data", "prompts", str(recipe), "out", "--cache", "wheels", "--eval-data", "eval"]
    assert main.main(line) == 0
    assert capsys.readouterr().out == "made\n"
    assert seen == [PromptRecipe(packages=(), licences=()), Path("wheels"), Path("out"), Path("eval")]


@pytest.mark.parametrize("command", [["train"], ["data", "generate"]])
def test_mistakes_in_a_recipe_are_one_line(command: list[str], recipe: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main.main([*command, str(tmp_path / "none.toml")]) == 1
    assert main.main([*command, str(recipe)]) == 1
    recipe.write_text("a = [")
    assert main.main([*command, str(recipe)]) == 1
    missing, unknown, broken = capsys.readouterr().err.splitlines()
    assert "does not exist: give the path of a TOML recipe" in missing
    assert "unknown key packages" in unknown
    assert "is not valid TOML" in broken
