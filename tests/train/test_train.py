"""Training: the objective against a slow per-block evaluation, exact resume, and an untouched base."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from openmercury.data.loader import Batch
from openmercury.data.shards import Example, write_manifest, write_shard
from openmercury.diffusion.corrupt import Corrupted
from openmercury.errors import ConfigError, TrainingError
from openmercury.model.attention import DenseAttend
from openmercury.model.convert import save_hf
from openmercury.model.masks import visible
from openmercury.model.transformer import Transformer
from openmercury.model.weights import load_model
from openmercury.train.config import BlockDiffusion, Data, Optim, Recipe
from openmercury.train.export import export_run, read_run
from openmercury.train.objectives import block as objectives
from openmercury.train.trainer import Trainer
from tests import tiny


def slow_loss(model: Transformer, batch: Batch, noisy: Corrupted, recipe: BlockDiffusion) -> torch.Tensor:
    """Each block by itself: its document's clean text before it, then the block, as decoding would see it."""
    total = torch.zeros((), dtype=torch.float64)
    for b, tokens in enumerate(batch.tokens_BL.tolist()):
        document = batch.document_BL[b].tolist()
        for block in sorted(set(noisy.block_BL[b].tolist())):
            for doc in sorted(set(document)):
                at = [i for i in range(len(tokens)) if noisy.block_BL[b, i] == block and document[i] == doc]
                if not at:
                    continue
                start = int(noisy.start_BL[b, at[0]])
                clean = [i for i in range(start) if document[i] == doc]
                order = clean + at
                position = torch.tensor([order])
                group = torch.tensor([[-1] * len(clean) + [0] * len(at)])
                end = torch.where(group < 0, position + 1, start)
                ids = torch.tensor([[tokens[i] for i in clean] + [int(noisy.ids_BL[b, i]) for i in at]])
                attend = DenseAttend(visible(end, group, position, group))
                log_p = model.logits(model(ids, position, attend, group >= 0))[0].log_softmax(-1)
                for row, i in enumerate(order[len(clean) :], start=len(clean)):
                    target = i + 1
                    if target >= len(tokens) or document[target] != doc:
                        continue
                    if bool(noisy.masked_BL[b, target]) and bool(batch.loss_mask_BL[b, target]):
                        total -= log_p[row, tokens[target]] * recipe.decay ** (i - start)
    return total


def test_loss_equals_slow_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.network()
    torch.manual_seed(3)
    tokens = torch.randint(0, 60, (2, 30))
    document = torch.tensor([[0] * 12 + [1] * 18, [0] * 30])
    mask = torch.rand(2, 30) < 0.8
    batch = Batch(tokens, mask, document)
    recipe = BlockDiffusion(block_sizes=(4, 7), ce=1.0, kl=0.0, decay=0.9)
    drawn: list[Corrupted] = []
    original = objectives.noise

    def spy(*args: object) -> Corrupted:
        drawn.append(original(*args))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(objectives, "noise", spy)
    loss = objectives.BlockDiffusionObjective(recipe)(model, batch, torch.Generator().manual_seed(0))
    # The mask token is −inf in `logits` and takes part in the training softmax: compare without it.
    monkeypatch.setattr(Transformer, "logits", lambda self, hidden: self.head(hidden))
    torch.testing.assert_close(loss.sum, slow_loss(model, batch, drawn[0], recipe))


def test_leaving_out_prompts_changes_nothing() -> None:
    """Blocks without anything to learn may stay out of the noisy half; too small a share is counted."""
    model = tiny.network()
    tokens = torch.randint(0, 60, (3, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(40).expand(3, 40) >= torch.tensor([[20], [4], [36]])
    batch = Batch(tokens, mask, torch.zeros_like(tokens))
    losses = {}
    for share in (1.0, 0.7, 0.2):
        recipe = BlockDiffusion(block_sizes=(4, 7), ce=0.6, kl=0.4, noisy_share=share)
        losses[share] = objectives.BlockDiffusionObjective(recipe)(model, batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(losses[0.7].sum, losses[1.0].sum)
    assert losses[0.7].metrics["left_out"][0] == 0
    assert losses[0.2].metrics["left_out"][0] > 0
    assert losses[0.2].weight + losses[0.2].metrics["left_out"][0] == losses[1.0].weight


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
    Trainer(make_run(tmp_path)).run()
    _, whole = read_run(tmp_path / "whole")
    _, resumed = read_run(tmp_path / "run")
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


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
    for name, parameter in trainer.adapter.named_parameters():
        assert torch.equal(parameter, model.adapter.get_parameter(name)), name


def test_state_of_another_rank_is_refused(tmp_path: Path) -> None:
    Trainer(make_run(tmp_path, steps=1)).run()
    with pytest.raises(TrainingError, match="another rank"):
        Trainer(make_run(tmp_path, rank=8))


def test_init_starts_from_an_exported_adapter(tmp_path: Path) -> None:
    """Step 0 holds the exported adapter; a state of the run's own wins over it; another rank is refused."""
    first = Trainer(make_run(tmp_path, steps=2))
    first.run()
    export_run(first.recipe.out, tmp_path / "export", "F32")
    init = tmp_path / "export"
    second = Trainer(make_run(tmp_path, out=tmp_path / "second", init=init))
    assert second.step == 0
    for name, parameter in first.adapter.named_parameters():
        assert torch.equal(parameter, second.adapter.get_parameter(name)), name
    second.train_step()
    second.save()
    resumed = Trainer(second.recipe)
    assert resumed.step == 1
    for name, parameter in second.adapter.named_parameters():
        assert torch.equal(parameter, resumed.adapter.get_parameter(name)), name
    with pytest.raises(ConfigError, match="adapter of rank 4, the recipe 8: make them equal"):
        Trainer(make_run(tmp_path, out=tmp_path / "third", init=init, rank=8))
    with pytest.raises(ConfigError, match="has no adapter"):
        Trainer(make_run(tmp_path, out=tmp_path / "third", init=tmp_path / "base"))


def test_a_gradient_that_is_not_finite_is_never_applied(tmp_path: Path) -> None:
    trainer = Trainer(make_run(tmp_path))
    trainer.train_step()
    trainer.adapter.mask_vector.register_hook(lambda gradient: gradient * torch.nan)
    before = {name: parameter.detach().clone() for name, parameter in trainer.adapter.named_parameters()}
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite"):
        trainer.train_step()
    assert trainer.step == 1
    for name, value in before.items():
        assert torch.equal(value, trainer.adapter.get_parameter(name)), name


def test_minutes_end_a_session(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, minutes=1e-9)
    Trainer(recipe).run()
    assert Trainer(recipe).step == 1
