"""`train` and `data`: recipes reach their runners, mistakes are told before torch loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import openmercury.data.prompt_set
import openmercury.distill
import openmercury.train.trainer
from openmercury.cli import main
from openmercury.data.config import PromptRecipe
from openmercury.data.shards import Example, write_shard

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


def test_show(tmp_path: Path, capsys: Capture) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"a": 0, "b": 1, "Ċ": 2}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(["<end>"])
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    shard = tmp_path / "shard.safetensors"
    write_shard(shard, [Example([0, 0, 1, 3], 2), Example([1, 2, 1], 1), Example([0, 0], 1)])
    for path in (shard, tmp_path):
        assert main.main(["data", "show", str(path), "--rows", "2", "--model", str(tmp_path)]) == 0
        assert capsys.readouterr().out == (
            "3 examples, 9 tokens, 4 of them prompt\n"
            "--- example 0: 2 tokens of prompt\naa\n--- example 0: 2 tokens trained on\nb<end>\n"
            "--- example 1: 1 tokens of prompt\nb\n--- example 1: 2 tokens trained on\n\nb\n"
        )


def test_show_refuses_what_is_no_shard(tmp_path: Path, capsys: Capture) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\x08")
    for path in (cut, tmp_path / "none"):
        assert main.main(["data", "show", str(path), "--model", str(tmp_path)]) == 1
        assert "is not a whole shard" in capsys.readouterr().err
