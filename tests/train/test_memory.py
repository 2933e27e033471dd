"""The estimate before a run, against what a run takes; and every recipe of ours can be estimated."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from openmercury.cli import train
from openmercury.config import load_config
from openmercury.data.shards import Example, write_manifest, write_shard
from openmercury.errors import ConfigError
from openmercury.model.config import ModelConfig
from openmercury.model.transformer import Transformer
from openmercury.train.config import BlockDiffusion, Data, Recipe
from openmercury.train.memory import estimate, parameters

RECIPES = Path(__file__).parents[2] / "recipes"
SHAPES = {"adapt-1.5b": "qwen2.5-1.5b", "adapt-7b-fsdp": "qwen2.5-7b"}
TRAINING = ("adapt-nano", "adapt-1.5b", "adapt-7b-fsdp", "sft-chat", "sft-edit", "dpo", "pretrain-150m")

MEASURE = """
import re, sys, torch
from pathlib import Path
from openmercury.train.config import Recipe
from openmercury.train.trainer import Trainer

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

torch.set_num_threads(1)
small, large = (Recipe.model_validate_json(text) for text in sys.argv[1:])
Trainer(small).train_step()  # what libraries take the first time
before = status("VmRSS")
trainer = Trainer(large)
for _ in range(2):
    Path("/proc/self/clear_refs").write_text("5")
    trainer.train_step()
print("bytes", status("VmHWM") - before)
"""


def shape(d_model: int, layers: int) -> ModelConfig:
    return ModelConfig(
        architecture="llama", vocab_size=4096, d_model=d_model, d_ffn=3 * d_model, n_layers=layers, n_heads=4,
        n_kv_heads=2, head_size=d_model // 4,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_estimate_against_what_a_run_takes(tmp_path: Path, checkpointing: bool) -> None:
    """Short rows: on a CPU attention keeps its scores, which the estimate leaves out."""
    rng = random.Random(0)
    texts = [Example([rng.randrange(4000) for _ in range(64)], 0) for _ in range(128)]
    write_shard(tmp_path / "data" / "a.safetensors", texts)
    write_manifest(tmp_path / "data")
    large = Recipe(
        architecture=shape(256, 6), tokenizer=tmp_path, out=tmp_path / "large", learn="full", mask_id=4095, steps=9,
        device="cpu", data=Data(path=tmp_path / "data", row_length=64, rows=96), checkpointing=checkpointing,
        objective=BlockDiffusion(kl=0.0),
    )  # fmt: skip
    data = large.data.model_copy(update={"rows": 2})
    small = large.model_copy(update={"architecture": shape(64, 1), "out": tmp_path / "small", "data": data})
    command = [sys.executable, "-c", MEASURE, small.model_dump_json(), large.model_dump_json()]
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}  # what is freed is given back
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=exact).stdout
    measured = int(told.split("bytes ")[1])
    expected = estimate(large, compute=4).bytes
    assert 0.7 < measured / expected < 1.4, (measured / 1e6, expected / 1e6)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted(tied: bool) -> None:
    config = shape(64, 2).model_copy(update={"tied": tied, "qkv_bias": True, "qk_norm": True})
    recipe = Recipe(
        architecture=config, tokenizer=Path("x"), out=Path("y"), learn="full", mask_id=1, steps=1,
        data=Data(path=Path("z")), objective=BlockDiffusion(kl=0.0),
    )  # fmt: skip
    assert parameters(recipe, config) == (sum(p.numel() for p in Transformer(config).parameters()), 0)


@pytest.mark.parametrize("name", TRAINING)
def test_every_recipe_is_estimated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)
    path = RECIPES / f"{name}.toml"
    recipe = load_config(Recipe, path)
    assert recipe.compile
    assert path.read_text().startswith("# ")
    if recipe.base is not None and name not in SHAPES and not recipe.base.exists():
        pytest.skip("the shipped model is not here")
    told = train.estimate(path, [], "H100", 8 if "fsdp" in name else 1, 0.4, SHAPES.get(name))
    memory = next(line for line in told.splitlines() if line.startswith("memory"))
    assert 1 < float(memory.split()[1]) < 80
    with pytest.raises(ConfigError, match=r"peak of 'Abacus' is not known: use one of .*H100"):
        train.estimate(path, [], "Abacus", 1, 0.4, SHAPES.get(name))
