"""`train` and `data`: recipes reach their runners, mistakes are told before torch loads."""

from __future__ import annotations

from pathlib import Path

import pytest

import openmercury.cli.data
import openmercury.data.prompts.collect
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
    monkeypatch.setattr(module, "run_recipe", lambda path, overrides, *_judge: seen.extend([path, overrides]))
    assert main.main([*command, str(recipe), "optim.lr=1e-4", "steps=3"]) == 0
    assert seen == [recipe, ["optim.lr=1e-4", "steps=3"]]


@pytest.mark.usefixtures("usable")
def test_answers_are_executed_between_what_belongs_to_them() -> None:
    right = openmercury.cli.data._judge()
    check = {"name": "area", "before": "import math", "after": "assert area(1) > 3"}
    assert right("Here:\n```python\ndef area(r):\n    return math.pi * r**2\n```\nThat is all.", check)
    assert not right("```python\ndef area(r):\n    return r\n```", check)
    assert not right("I cannot.", check)


@pytest.mark.usefixtures("no_sandbox")
def test_without_a_sandbox_nothing_is_answered(recipe: Path, capsys: Capture) -> None:
    recipe.write_text('model = "m"\nprompts = "p"\nout = "o"\n')
    assert main.main(["data", "generate", str(recipe)]) == 1
    assert "no sandbox here: install bubblewrap" in capsys.readouterr().err


def test_prompts(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    seen: list[object] = []

    def prepare(settings: PromptRecipe, *paths: Path) -> Path:
        seen.extend([settings, *paths])
        return Path("made")

    monkeypatch.setattr(openmercury.data.prompts.collect, "prepare_prompts", prepare)
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
