"""Whole runs: what learns, where it starts, what is saved, measured and exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from openmercury.errors import ConfigError, TrainingError
from openmercury.model.attention import DenseAttend
from openmercury.model.config import read_config
from openmercury.model.weights import load_model
from openmercury.train import metrics as trackers
from openmercury.train.checkpoint import find_state, states
from openmercury.train.config import AR, BlockDiffusion, Data, Eval, MaskedDiffusion, Recipe
from openmercury.train.export import export_run, read_run
from openmercury.train.trainer import Trainer
from tests import tiny
from tests.train.test_train import make_run

FULL = BlockDiffusion(block_sizes=(4, 8), kl=0.0, ce=1.0)


def scratch(folder: Path, **changes: object) -> Recipe:
    """A run from random weights."""
    base = make_run(folder)
    shape = tiny.config(adapter=False)
    fields = {**base.model_dump(), "base": None, "architecture": shape, "tokenizer": base.base, "learn": "full"}
    return Recipe.model_validate({**fields, "objective": FULL, **changes})


def test_random_weights_learn_and_are_exported(tmp_path: Path) -> None:
    recipe = scratch(tmp_path, steps=30, ema=0.5)
    trainer = Trainer(recipe)
    trainer.run()
    rows = [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    export_run(recipe.out, tmp_path / "F32", "F32")
    model = load_model(tmp_path / "F32", dtype=torch.float32)
    assert model.config.diffusion is not None
    assert model.config.diffusion.adapter is None
    assert trainer.ema is not None
    for name, value in trainer.ema.average.items():
        assert torch.equal(value, model.get_parameter(name)), name
    export_run(recipe.out, tmp_path / "Q8", "Q8_0")
    rounded = load_model(tmp_path / "Q8", dtype=torch.float32)
    torch.testing.assert_close(
        rounded.head.weight, model.head.weight, rtol=0, atol=float(model.head.weight.abs().max()) / 127
    )


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first, second = (Trainer(scratch(tmp_path, out=tmp_path / name)) for name in "ab")
    other = Trainer(scratch(tmp_path, out=tmp_path / "c", seed=1))
    assert torch.equal(first.model.head.weight, second.model.head.weight)
    assert not torch.equal(first.model.head.weight, other.model.head.weight)


@pytest.mark.parametrize("objective", [AR(), MaskedDiffusion()])
def test_other_objectives_learn_as_a_whole(tmp_path: Path, objective: AR | MaskedDiffusion) -> None:
    recipe = scratch(tmp_path, steps=30, objective=objective)
    Trainer(recipe).run()
    rows = [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    export_run(recipe.out, tmp_path / "out")
    assert (read_config(tmp_path / "out").diffusion is None) == (objective.kind == "ar")


def test_embeddings_learn_beside_the_adapter_and_layers_do_not(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, steps=3, learn="adapter_embeddings")
    trainer = Trainer(recipe)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.run()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert "embedding.weight" in moved
    assert not any(name.startswith("layers.") for name in moved)
    export_run(recipe.out, tmp_path / "out", "F32")
    model = load_model(tmp_path / "out", dtype=torch.float32)
    assert model.adapter is not None
    assert torch.equal(model.adapter.mask_vector, trainer.parameters["adapter.mask_vector"])
    torch.testing.assert_close(model.embedding.weight, trainer.model.embedding.weight, rtol=8e-3, atol=1e-6)  # BF16


def test_parts_of_a_batch_train_what_the_whole_does(tmp_path: Path) -> None:
    data = Data(path=tmp_path / "data", row_length=64, rows=4)
    whole = make_run(tmp_path, out=tmp_path / "whole", dtype="float64", data=data)
    parts = whole.model_copy(
        update={"out": tmp_path / "parts", "data": data.model_copy(update={"forward_rows": 1}), "checkpointing": True}
    )
    for recipe in (whole, parts):
        Trainer(recipe).run()
    found = read_run(tmp_path / "parts")[1]
    for name, value in read_run(tmp_path / "whole")[1].items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-13, msg=name)
    with pytest.raises(ConfigError, match="do not divide into forwards of 3"):
        Trainer(parts.model_copy(update={"data": data.model_copy(update={"forward_rows": 3})}))


def test_the_fused_update_equals_the_sum(tmp_path: Path) -> None:
    model = tiny.network()
    assert model.adapter is not None
    ids, position = torch.randint(0, 60, (2, 9)), torch.arange(9).expand(2, -1)
    gate, mask = torch.rand(2, 9) < 0.7, torch.ones(2, 9, 9, dtype=torch.bool)
    plain = model(ids, position, DenseAttend(mask), gate)
    model.adapter.requires_grad_(True)
    fused = model(ids, position, DenseAttend(mask), gate)
    torch.testing.assert_close(fused, plain)
    gradients = {}
    for name in ("fused", "sum"):  # weights that learn too take the plain way
        model.layers.requires_grad_(name == "sum")
        model.zero_grad()
        (model(ids, position, DenseAttend(mask), gate) ** 2).sum().backward()
        gradients[name] = [p.grad.clone() for p in model.adapter.parameters() if p.grad is not None]
    for one, other in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_loss_that_is_not_finite_leaves_its_batch(tmp_path: Path) -> None:
    trainer = Trainer(make_run(tmp_path))
    trainer.train_step()
    with torch.no_grad():
        trainer.parameters["adapter.mask_vector"].fill_(torch.nan)
    with pytest.raises(TrainingError, match="step 1: the loss is not finite; its batch is in"):
        trainer.train_step()
    batch = load_file(trainer.recipe.out / "batch-00000001.safetensors")
    assert batch["tokens_BL"].shape == (3, 64)


def test_held_out_rows_are_measured_and_never_trained_on(tmp_path: Path) -> None:
    measured: list[Path] = []

    def probe(folder: Path) -> dict[str, float]:
        measured.append(folder)
        assert load_model(folder, dtype=torch.float32).adapter is not None
        return {"task/passed": 0.5}

    evaluation = Eval(every=2, share=0.3, rows=3, task="made")
    trainer = Trainer(make_run(tmp_path, steps=4, eval=evaluation), probes=[probe])
    assert trainer.evaluation is not None
    held = {row.tobytes() for row in trainer.evaluation.rows.tokens_BL.numpy() if row.any()}
    for _ in range(12):
        assert not held & {row.tobytes() for row in trainer.feed.next().tokens_BL.numpy()}
    trainer = Trainer(trainer.recipe, probes=[probe])
    trainer.run()
    rows = [json.loads(line) for line in (trainer.recipe.out / "metrics.jsonl").read_text().splitlines()]
    told = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in told] == [2, 4]
    assert all(0 <= row["eval/draft_run"] <= 7 and row["eval/task/passed"] == 0.5 for row in told)
    assert len(measured) == 2
    assert not any(folder.exists() for folder in measured)


def test_old_states_go_and_broken_ones_are_named(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, steps=6, save_every=1, keep=2)
    Trainer(recipe).run()
    assert [path.name for path in states(recipe.out)] == ["step-00000005", "step-00000006"]
    last = find_state(recipe.out)
    assert last is not None
    file = last / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"step-00000006 cannot be read .* delete it"):
        Trainer(recipe)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    trainer = Trainer(make_run(tmp_path, steps=1))
    monkeypatch.setattr("openmercury.train.storage.save_file", full)
    with pytest.raises(TrainingError, match=r"No space left on device.*free some space"):
        trainer.run()


def test_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'openmercury\[wandb\]'"):
        Trainer(make_run(tmp_path, trackers=["wandb"])).run()
    told: list[tuple[int, dict[str, float]]] = []

    class Module:
        @staticmethod
        def init(**facts: object) -> None:
            assert facts["project"] == "openmercury"

        @staticmethod
        def log(row: dict[str, float], step: int) -> None:
            told.append((step, row))

        @staticmethod
        def finish() -> None:
            told.append((-1, {}))

    monkeypatch.setattr(trackers, "import_module", lambda name: Module)
    Trainer(make_run(tmp_path, trackers=["trackio"], out=tmp_path / "told", steps=2)).run()
    assert [step for step, _ in told] == [2, -1]
    assert told[0][1]["loss"] > 0


def test_tensorboard_reads_what_was_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = make_run(tmp_path, trackers=["tensorboard"], steps=4)
    Trainer(recipe).run()
    events = EventAccumulator(str(recipe.out / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (recipe.out / "metrics.jsonl").read_text().splitlines()]
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(row["step"], pytest.approx(row["loss"])) for row in rows]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": None}, "give either base"),
        ({"learn": "full", "init": "somewhere"}, "init is an adapter"),
        ({"mask_id": None}, "mask_id is missing"),
        ({"tokenizer": "somewhere"}, "tokenizer goes with architecture"),
        (
            {"base": None, "tokenizer": "x", "learn": "full", "architecture": tiny.config()},
            "random weights need kl",
        ),
    ],
)
def test_recipes_that_contradict_themselves(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_run(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_id": 64}, "mask_id 64 lies outside the vocabulary of 64"),
        ({"data": Data(path=Path("x"), row_length=257)}, "row_length = 257 is beyond the 256 positions"),
        ({"context": {"factor": 2, "length": 256}}, "must lie above the model's 256 positions"),
        ({"context": {"factor": 2, "length": 513}}, "no further than context.factor = 2 times"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
    ],
)
def test_recipes_that_do_not_fit_their_base(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(make_run(tmp_path, **changes))


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """kill -9 at some moment of each session, a state every step; the end is the same to the bit."""
    whole = make_run(tmp_path, out=tmp_path / "whole", steps=40, ema=0.9, save_every=1000, device="cpu")
    Trainer(whole).run()
    cut = whole.model_copy(update={"out": tmp_path / "cut", "save_every": 1})
    path = tmp_path / "cut.json"
    path.write_text(cut.model_dump_json())
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from openmercury.train.config import Recipe\n"
        "from openmercury.train.trainer import Trainer\n"
        "Trainer(Recipe.model_validate_json(Path(sys.argv[1]).read_text())).run()\n"
    )
    kills = 0
    for session in range(40):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.DEVNULL)
        begun = len(list((cut.out / "states").glob("*"))) if cut.out.exists() else 0
        while process.poll() is None:
            seen = [p.name for p in (cut.out / "states").glob("*")] if cut.out.exists() else []
            if len(seen) > begun or any(name.endswith(".partial") for name in seen):
                time.sleep(0.005 * session)
                break
            time.sleep(0.001)
        if process.poll() is None and kills < 3:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
    assert kills == 3
    expected, found = read_run(whole.out)[1], read_run(cut.out)[1]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
