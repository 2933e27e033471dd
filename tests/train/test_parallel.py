"""Several processes train what one would: same rows, same noise, same gradient, one set of files."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from openmercury.errors import ConfigError
from openmercury.train.checkpoint import find_state, read_state
from openmercury.train.config import Data, Recipe
from openmercury.train.parallel import World
from openmercury.train.storage import Reader
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


def state_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Everything in the newest state of a run."""
    state = find_state(recipe.out)
    assert state is not None
    facts = Reader(state).read_metadata().state_dict_metadata
    found = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in facts.items()}  # type: ignore[union-attr]
    read_state(state, found, World())
    return found


WAYS: dict[str, dict[str, object]] = {
    "adapter": {},
    "parts": {"data": {"rows": 4, "row_length": 64, "forward_rows": 1}},
    "sharded_base": {"shard": True},
    "embeddings": {"learn": "adapter_embeddings", "ema": 0.9},
    "full": {"learn": "full", "ema": 0.9, "checkpointing": True},
}


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Steps 1 to 4 of each way; each is also cut after one step by its `minutes`, and resumed."""
    data = Data(path=tmp_path / "data", row_length=64, rows=4)
    one = make_run(tmp_path, out=tmp_path / "one", steps=4, dtype="float64", data=data, device="cpu")
    ways = {name: Recipe.model_validate({**one.model_dump(), **_at(tmp_path, way)}) for name, way in WAYS.items()}
    recipes = []
    for name, recipe in ways.items():
        two, cut = (recipe.model_copy(update={"out": tmp_path / f"{name}-{kind}"}) for kind in ("two", "cut"))
        recipes += [two, cut.model_copy(update={"minutes": 1e-9}), cut]
    multiprocessing.spawn(worker, (free_port(), recipes), nprocs=RANKS)  # type: ignore[no-untyped-call]
    for name, recipe in ways.items():
        alone = recipe.model_copy(update={"out": tmp_path / name, "shard": None})
        Trainer(alone).run()
        expected = state_of(alone)
        assert any(key.startswith("model/") and value.dtype == torch.float64 for key, value in expected.items())
        for kind in ("two", "cut"):
            other = recipe.model_copy(update={"out": tmp_path / f"{name}-{kind}"})
            found = state_of(other)
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-15, msg=f"{name} {kind} {key}")
        two = recipe.model_copy(update={"out": tmp_path / f"{name}-two"})
        assert [row["step"] for row in metrics(two)] == [2, 4]
        for found_row, row in zip(metrics(two), metrics(alone), strict=True):
            for key in ("step", "tokens", "lr", "loss", "ce_level_3", "hit_full", "draft_prefix"):
                assert found_row[key] == pytest.approx(row[key], rel=1e-9), key


def _at(folder: Path, way: dict[str, object]) -> dict[str, object]:
    data = way.get("data")
    return way if data is None else {**way, "data": {**data, "path": folder / "data"}}  # type: ignore[dict-item]


def test_a_state_is_read_by_another_number_of_ranks(tmp_path: Path) -> None:
    """One rank goes on where two sharded ones stopped, as one that was never sharded does."""
    data = Data(path=tmp_path / "data", row_length=64, rows=4)
    whole = make_run(tmp_path, out=tmp_path / "one", steps=4, dtype="float64", data=data, device="cpu", learn="full")
    cut = whole.model_copy(update={"out": tmp_path / "cut", "minutes": 1e-9})
    multiprocessing.spawn(worker, (free_port(), [cut]), nprocs=RANKS)  # type: ignore[no-untyped-call]
    Trainer(whole).run()
    Trainer(cut.model_copy(update={"minutes": None})).run()
    found = state_of(cut)
    for key, value in state_of(whole).items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-15, msg=key)


def test_rows_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make it a multiple"):
        Trainer(make_run(tmp_path, device="cpu"), world=World(rank=0, size=2))
