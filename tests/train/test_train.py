"""Training: the objective against a slow per-block evaluation, exact resume, and an untouched base."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import torch

from openmercury.data.shards import Example, write_manifest, write_shard
from openmercury.errors import ConfigError, TrainingError
from openmercury.model.adapter import Adapter
from openmercury.model.convert import save_hf
from openmercury.model.weights import load_model
from openmercury.train.config import BlockDiffusion, Data, Optim, Recipe
from openmercury.train.export import export_run, read_run
from openmercury.train.optim import Optimizer
from openmercury.train.trainer import Trainer
from tests import tiny


def adapter_of(trainer: Trainer) -> Adapter:
    assert trainer.model.adapter is not None
    return trainer.model.adapter


def make_run(folder: Path, **changes: object) -> Recipe:
    base = folder / "base"
    if not base.exists():
        save_hf(tiny.network(dtype=torch.float32, of=tiny.config(adapter=False)), base)
        rng = random.Random(0)
        starts = [rng.randrange(60) for _ in range(40)]
        examples = [Example([(s + k) % 60 for k in range(rng.randint(10, 30))], 3) for s in starts]
        write_shard(folder / "data" / "a.safetensors", examples)
        write_manifest(folder / "data")
    fields: dict[str, object] = {
        "base": base,
        "out": folder / "run",
        "rank": 4,
        "mask_id": tiny.MASK,
        "steps": 6,
        "log_every": 2,
        "data": Data(path=folder / "data", row_length=64, rows=3),
        "optim": Optim(lr=1e-2, warmup_steps=2),
        "objective": BlockDiffusion(block_sizes=(4, 8)),
    }
    return Recipe.model_validate({**fields, **changes})


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    Trainer(make_run(tmp_path, out=tmp_path / "whole")).run()
    half = Trainer(make_run(tmp_path))
    half.recipe.out.mkdir()
    (half.recipe.out / "recipe.json").write_text(half.recipe.model_dump_json())
    for _ in range(3):
        half.train_step()
    half.save()
    half.checkpointer.wait()
    Trainer(make_run(tmp_path)).run()
    _, whole = read_run(tmp_path / "whole")
    _, resumed = read_run(tmp_path / "run")
    for name, parameter in whole.items():
        assert torch.equal(parameter, resumed[name]), name


def test_an_interrupted_run_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the third step, the weights changed and the step not counted."""
    Trainer(make_run(tmp_path, out=tmp_path / "whole")).run()
    cut, update = Trainer(make_run(tmp_path)), Optimizer.step

    def interrupted(optimizer: Optimizer, rate: float, scale: torch.Tensor, broken: torch.Tensor) -> None:
        update(optimizer, rate, scale, broken)
        if cut.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    assert cut.step == 3
    monkeypatch.setattr(Optimizer, "step", update)
    Trainer(make_run(tmp_path)).run()
    (_, whole), (_, resumed) = (read_run(tmp_path / name) for name in ("whole", "run"))
    for name, parameter in whole.items():
        assert torch.equal(parameter, resumed[name]), name


def test_training_learns_and_leaves_the_base_alone(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, steps=60, objective=BlockDiffusion(ce=1.0, kl=0.0, block_sizes=(4, 8)))
    trainer = Trainer(recipe)
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if not name.startswith("adapter")}
    losses = []
    for _ in range(60):
        loss = trainer.train_step()
        losses.append(float(loss.sum.detach() / loss.weight))
    assert sum(losses[-10:]) / 10 < 0.9 * sum(losses[:3]) / 3, losses
    for name, value in before.items():
        assert torch.equal(value, trainer.model.get_parameter(name)), name


def test_export(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, steps=2)
    trainer = Trainer(recipe)
    trainer.run()
    export_run(recipe.out, tmp_path / "out", "F32")
    model = load_model(tmp_path / "out", dtype=torch.float32)
    assert model.config.diffusion is not None
    assert model.config.diffusion.mask_id == tiny.MASK
    assert model.adapter is not None
    for name, parameter in adapter_of(trainer).named_parameters():
        assert torch.equal(parameter, model.adapter.get_parameter(name)), name


def test_rows_that_no_block_of_values_fits_stay_as_they_are(tmp_path: Path) -> None:
    """Q8_0 holds 32 values of a row at a time: A [4, 32] is rounded, B [.., 4] is not."""
    trainer = Trainer(make_run(tmp_path, steps=2))
    trainer.run()
    export_run(trainer.recipe.out, tmp_path / "out", "Q8_0")
    adapter = load_model(tmp_path / "out", dtype=torch.float32).adapter
    assert adapter is not None
    for name, parameter in adapter_of(trainer).named_parameters():
        found = adapter.get_parameter(name)
        assert torch.equal(parameter, found) == (not name.endswith(".a") or parameter.shape[1] % 32 > 0), name
        torch.testing.assert_close(parameter, found, rtol=0, atol=float(parameter.detach().abs().max()) / 127)


def test_state_of_another_rank_is_refused(tmp_path: Path) -> None:
    Trainer(make_run(tmp_path, steps=1)).run()
    with pytest.raises(TrainingError, match="another recipe"):
        Trainer(make_run(tmp_path, rank=8))


def test_state_of_another_noise_is_refused(tmp_path: Path) -> None:
    Trainer(make_run(tmp_path, steps=1)).run()
    assert Trainer(make_run(tmp_path, objective=BlockDiffusion(block_sizes=(2,)))).step == 1
    with pytest.raises(TrainingError, match=r"logit_shift': True.* the recipe says .*logit_shift': False"):
        Trainer(make_run(tmp_path, objective=BlockDiffusion(shift=False)))


def test_a_run_of_another_version_is_told(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, steps=1)
    Trainer(recipe).run()
    (recipe.out / "recipe.json").write_text('{"out": "x", "stepz": 3}')
    with pytest.raises(TrainingError, match=r"recipe.json is no recipe of this version .*stepz"):
        export_run(recipe.out, tmp_path / "out")


def test_init_starts_from_an_exported_adapter(tmp_path: Path) -> None:
    """Step 0 holds the exported adapter; a state of the run's own wins over it; another rank is refused."""
    first = Trainer(make_run(tmp_path, steps=2))
    first.run()
    export_run(first.recipe.out, tmp_path / "export", "F32")
    init = tmp_path / "export"
    second = Trainer(make_run(tmp_path, out=tmp_path / "second", init=init))
    assert second.step == 0
    for name, parameter in adapter_of(first).named_parameters():
        assert torch.equal(parameter, adapter_of(second).get_parameter(name)), name
    second.train_step()
    second.save()
    second.checkpointer.wait()
    resumed = Trainer(second.recipe)
    assert resumed.step == 1
    for name, parameter in adapter_of(second).named_parameters():
        assert torch.equal(parameter, adapter_of(resumed).get_parameter(name)), name
    with pytest.raises(ConfigError, match="adapter of rank 4, the recipe 8: make them equal"):
        Trainer(make_run(tmp_path, out=tmp_path / "third", init=init, rank=8))
    with pytest.raises(ConfigError, match="has no adapter"):
        Trainer(make_run(tmp_path, out=tmp_path / "third", init=tmp_path / "base"))


def test_a_chain_begins_where_an_exported_adapter_has_none(tmp_path: Path) -> None:
    """It changes nothing at first and learns beside the adapter; exported it is itself, and has its own rank."""
    first = Trainer(make_run(tmp_path, steps=2))
    first.run()
    export_run(first.recipe.out, tmp_path / "export", "F32")
    tied = Trainer(make_run(tmp_path, out=tmp_path / "tied", init=tmp_path / "export", chain=4))
    chain = adapter_of(tied).chain
    assert chain is not None
    assert not chain.out.any()
    hidden = torch.randn(3, 32)
    assert torch.equal(chain(hidden, torch.randn(3, 32)), hidden)
    for name, parameter in adapter_of(first).named_parameters():
        assert torch.equal(parameter, adapter_of(tied).get_parameter(name)), name
    start = {name: parameter.detach().clone() for name, parameter in chain.named_parameters()}
    tied.run()
    for name, value in start.items():
        assert not torch.equal(value, chain.get_parameter(name)), name
    export_run(tied.recipe.out, tmp_path / "chained", "F32")
    adapter = load_model(tmp_path / "chained", dtype=torch.float32).adapter
    assert adapter is not None
    again = Trainer(make_run(tmp_path, out=tmp_path / "again", init=tmp_path / "chained", chain=4))
    for name, parameter in adapter_of(tied).named_parameters():
        assert torch.equal(parameter, adapter.get_parameter(name)), name
        assert torch.equal(parameter, adapter_of(again).get_parameter(name)), name
    untouched = Trainer(
        make_run(
            tmp_path,
            out=tmp_path / "untouched",
            init=tmp_path / "chained",
            chain=4,
            objective=BlockDiffusion(chained=0.0),
        )
    )
    untouched.run()
    export_run(untouched.recipe.out, tmp_path / "kept", "F32")
    kept = load_model(tmp_path / "kept", dtype=torch.float32).adapter
    assert kept is not None
    assert kept.chain is not None
    for name, value in chain.named_parameters():
        assert torch.equal(value, kept.chain.get_parameter(name)), name
    with pytest.raises(ConfigError, match="chain of rank 4, the recipe 8: make them equal"):
        Trainer(make_run(tmp_path, out=tmp_path / "third", init=tmp_path / "chained", chain=8))


def test_a_gradient_that_is_not_finite_is_never_applied(tmp_path: Path) -> None:
    trainer = Trainer(make_run(tmp_path))
    trainer.train_step()
    adapter_of(trainer).mask_vector.register_hook(lambda gradient: gradient * torch.nan)
    before = {name: parameter.detach().clone() for name, parameter in adapter_of(trainer).named_parameters()}
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite"):
        trainer.train_step()
    assert trainer.step == 1
    for name, value in before.items():
        assert torch.equal(value, adapter_of(trainer).get_parameter(name)), name


def test_minutes_end_a_session(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, minutes=1e-9)
    Trainer(recipe).run()
    assert Trainer(recipe).step == 1
