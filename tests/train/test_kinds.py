"""Every objective through the trainer, with each choice of what learns; a resumed run is the uninterrupted one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from openmercury.data.shards import Example, write_manifest, write_shard
from openmercury.errors import ConfigError
from openmercury.train.config import Data
from openmercury.train.trainer import Trainer
from tests.train.test_train import make_run

OBJECTIVES = {
    "ar": {"kind": "ar"},
    "masked_diffusion": {"kind": "masked_diffusion"},
    "block_diffusion": {"block_sizes": [4], "align": 1.0, "certainty": 0.1, "on_policy": {"share": 0.5}},
    "bound": {"block_sizes": [4], "weights": "bound"},
    "dpo": {"kind": "dpo", "block_sizes": [4]},
}


def pair_data(folder: Path) -> Data:
    rng = random.Random(1)
    path = folder / "pairs"
    if not path.exists():
        prompts = [[rng.randrange(60) for _ in range(4)] for _ in range(30)]
        examples = [
            Example([*prompt, *[n % 60 for n in range(start, start + rng.randint(4, 9))]], 4, kind)
            for prompt in prompts
            for start, kind in ((7, "chosen"), (30, "rejected"))
        ]
        write_shard(path / "a.safetensors", examples)
        write_manifest(path)
    return Data(path=path, row_length=64, rows=2)


@pytest.mark.parametrize("learn", ["adapter", "adapter_embeddings", "full"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_three_steps_and_a_resume(tmp_path: Path, name: str, learn: str) -> None:
    fields: dict[str, object] = {"objective": OBJECTIVES[name], "learn": learn, "dtype": "float64", "steps": 3}
    if name == "dpo":
        fields["data"] = pair_data(tmp_path)
    if name == "ar" and learn == "adapter":
        with pytest.raises(ConfigError, match="objective ar trains the base"):
            Trainer(make_run(tmp_path, **fields))
        return
    whole = Trainer(make_run(tmp_path, out=tmp_path / "whole", **fields))
    before = {key: p.detach().clone() for key, p in whole.parameters.items()}
    losses = [whole.train_step() for _ in range(3)]
    assert all(torch.isfinite(loss.sum) and loss.weight > 0 for loss in losses)
    assert any(not torch.equal(p, before[key]) for key, p in whole.parameters.items())
    half = Trainer(make_run(tmp_path, **fields))
    half.train_step()
    half.save()
    half.checkpointer.wait()
    resumed = Trainer(make_run(tmp_path, **fields))
    assert resumed.step == 1
    for _ in range(2):
        resumed.train_step()
    for key, p in whole.parameters.items():
        torch.testing.assert_close(resumed.parameters[key], p, rtol=0, atol=0, msg=key)


def test_pairs_and_dpo_go_together(tmp_path: Path) -> None:
    make_run(tmp_path)
    with pytest.raises(ConfigError, match="holds no preference pairs"):
        Trainer(make_run(tmp_path, objective={"kind": "dpo", "block_sizes": [4]}))
    with pytest.raises(ConfigError, match=r'half of them are not to be learnt: write objective.kind = "dpo"'):
        Trainer(make_run(tmp_path, data=pair_data(tmp_path)))
