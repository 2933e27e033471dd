"""`train` on the command line: an estimate without a run, and a benchmark that is answered during one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openmercury.cli import main
from openmercury.data.shards import Example, fingerprint, write_manifest, write_shard
from tests.eval import made
from tests.eval.conftest import anywhere as anywhere

RECIPE = """
base = "{folder}/base"
out = "{folder}/run"
rank = 4
mask_id = 511
steps = 2
device = "cpu"
data = {{path = "{folder}/data", row_length = 64, rows = 2}}
eval = {{every = 2, share = 0.3, rows = 2, task = "humaneval", limit = 2}}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = made.write_checkpoint(tmp_path / "base")
    monkeypatch.setenv("OPENMERCURY_EVAL_DATA", str(made.write_data(tmp_path / "eval")))
    texts = [Example(list(range(start, start + 40)), 5) for start in range(0, 400, 10)]
    write_shard(tmp_path / "data" / "a.safetensors", texts, tokenizer=fingerprint(base))
    write_manifest(tmp_path / "data")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def test_a_benchmark_is_answered_during_a_run(recipe: Path, anywhere: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", str(recipe)]) == 0
    rows = [json.loads(line) for line in (recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    told = next(row for row in rows if "eval/loss" in row)
    assert told["eval/humaneval/passed"] == 0.0  # random weights
    assert told["eval/humaneval/tokens_per_forward"] > 0
    assert 1 <= told["eval/tokens_per_cycle"] <= 8
    assert "held out:" in capsys.readouterr().out


def test_an_unknown_benchmark_is_told_before_training(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", str(recipe), "eval.task=humanevil"]) == 1
    assert "did you mean 'humaneval'" in capsys.readouterr().err
    assert not (recipe.parent / "run").exists()


def test_dry_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", str(recipe), "optim.lr=0.5", "--dry-run", "--gpu", "A100", "--gpus", "2"]) == 0
    out = capsys.readouterr().out
    assert '"lr": 0.5' in out
    assert "where 88% of all have a loss" in out
    assert "on 2 × A100 at an MFU of 40%" in out
    assert not (recipe.parent / "run").exists()
    assert main.main(["train", str(recipe), "--gpus", "2"]) == 2
    assert "--gpus goes with --dry-run: drop it" in capsys.readouterr().err
    assert main.main(["train", str(recipe), "--dry-run", "--shape", "none"]) == 1
    assert "there is no shape 'none': use one of qwen2.5-1.5b" in capsys.readouterr().err
