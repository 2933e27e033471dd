"""Several processes train what one would: same rows, same noise, same gradient, one set of files."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from openmercury.errors import ConfigError
from openmercury.train.config import Data, Recipe
from openmercury.train.parallel import World
from openmercury.train.trainer import Trainer
from tests.train.test_train import make_run

RANKS = 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def worker(rank: int, port: int, recipes: list[Recipe]) -> None:
    """One process as torchrun would start it."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    world = World.start("cpu")
    for recipe in recipes:
        Trainer(recipe, world=world).run()
    world.close()


def metrics(recipe: Recipe) -> list[dict[str, object]]:
    return [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Steps 1 to 4; the third recipe resumes after a session that its `minutes` ended at once."""
    data = Data(path=tmp_path / "data", row_length=64, rows=4)
    one = make_run(tmp_path, out=tmp_path / "one", steps=4, dtype="float64", data=data, device="cpu")
    two, cut = (one.model_copy(update={"out": tmp_path / name}) for name in ("two", "cut"))
    recipes = [two, cut.model_copy(update={"minutes": 1e-9}), cut]
    multiprocessing.spawn(worker, (free_port(), recipes), nprocs=RANKS)  # type: ignore[no-untyped-call]
    Trainer(one).run()
    expected = load_file(one.out / "state" / "tensors.safetensors")
    assert expected["mask_vector"].dtype == torch.float64
    for recipe in (two, cut):
        found = load_file(recipe.out / "state" / "tensors.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-15, msg=name)
    assert [row["step"] for row in metrics(two)] == [2, 4]
    for found_row, row in zip(metrics(two), metrics(one), strict=True):
        for key in ("step", "tokens", "lr", "loss", "ce_level_3", "hit_full", "draft_prefix"):
            assert found_row[key] == pytest.approx(row[key], rel=1e-9), key


def test_rows_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make it a multiple"):
        Trainer(make_run(tmp_path, device="cpu"), world=World(rank=0, size=2))
