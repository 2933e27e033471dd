"""Block diffusion against slow evaluations of its definition, value and gradient, for every option."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.data.loader import Batch
from openmercury.diffusion.bound import nll_bound
from openmercury.diffusion.corrupt import Blocks, Corrupted, cut_blocks
from openmercury.errors import ConfigError
from openmercury.model.transformer import Transformer
from openmercury.train.config import AR, BlockDiffusion
from openmercury.train.objectives import block, build_objective
from openmercury.train.objectives.base import Loss
from tests import tiny
from tests.train.objectives.slow import batch_of, blocks_of, causal, learnt

KEEP = [i for i in range(64) if i != tiny.MASK]
ALL = slice(None)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepared(learn: str) -> Transformer:
    model = tiny.network(of=tiny.config(adapter=learn == "adapter"))
    if learn == "full":
        config = model.config.model_dump() | {"diffusion": {"mask_id": tiny.MASK, "block_size": 6}}
        model.config = type(model.config).model_validate(config)
        return model.requires_grad_(True)
    assert model.adapter is not None
    model.adapter.requires_grad_(True)
    return model


def run(
    monkeypatch: pytest.MonkeyPatch, model: Transformer, config: BlockDiffusion, batch: Batch, progress: float = 0.0
) -> tuple[Loss, list[Corrupted]]:
    """The loss, and the noisy copies it drew."""
    drawn: list[Corrupted] = []
    original = block.noisy_copies

    def spy(*args: object) -> list[Corrupted]:
        drawn.extend(original(*args))  # type: ignore[arg-type]
        return drawn

    monkeypatch.setattr(block, "noisy_copies", spy)
    objective = build_objective(config, model, compile=False)
    return objective(model, batch, generator(1), ALL, progress), drawn


def row_loss(config: BlockDiffusion, log_p: Tensor, log_q: Tensor, token: int) -> Tensor:
    found = -config.ce * log_p[token]
    log_p, log_q = log_p[KEEP], log_q[KEEP]
    found = found + config.kl * (log_q.exp() * (log_q - log_p)).sum()
    right = KEEP[int(log_p.argmax())] == token
    return found - config.certainty * right * (log_p.exp() * log_p).sum()


def slow_flat(
    model: Transformer, config: BlockDiffusion, batch: Batch, copies: list[Corrupted]
) -> tuple[Tensor, float]:
    """Σ and Σ weights. The teacher is the model's own clean side, which is right before any step was made."""
    total, weights, shift = torch.zeros((), dtype=torch.float64), 0.0, int(config.shift)
    for b in range(len(batch.tokens_BL)):
        log_q, _ = causal(model, batch, b)
        for p in range(1, batch.tokens_BL.shape[1]):
            if config.ar and learnt(batch, b, p):
                total, weights = total - config.ar * log_q[p - 1, batch.tokens_BL[b, p]], weights + config.ar
    for noisy in copies:
        for read in blocks_of(model, batch, noisy):
            log_q, clean_states = (x.detach() for x in causal(model, batch, read.b))
            for place, i in enumerate(read.at[read.settled :]):
                target = i + shift
                if target >= batch.tokens_BL.shape[1] or not learnt(batch, read.b, target):
                    continue
                if target in read.at and not noisy.masked_BL[read.b, target]:
                    continue
                weight = config.decay**place
                one = row_loss(config, read.log_p[i], log_q[target - 1], int(batch.tokens_BL[read.b, target]))
                apart = 1 - F.cosine_similarity(read.states[i], clean_states[:, target - 1], dim=-1).mean()
                total, weights = total + weight * (one + config.align * apart), weights + weight
    return total, weights


FLAT = [
    {"ce": 1.0, "kl": 0.0, "decay": 0.9},
    {"ce": 0.5, "kl": 0.5, "certainty": 0.3},
    {"shift": False, "decay": 0.8},
    {"complementary": True},
    {"complementary": True, "shift": False, "full_mask_share": 0.0, "late": 0.5, "max_rate": 0.8},
    {"align": 2.0},
    {"align": 2.0, "shift": False},
]


@pytest.mark.parametrize("options", FLAT)
@pytest.mark.parametrize("learn", ["adapter", "full"])
def test_equals_slow_evaluation(monkeypatch: pytest.MonkeyPatch, options: dict[str, object], learn: str) -> None:
    """Value, weight, and the gradient of all that learns."""
    model, batch = prepared(learn), batch_of()
    fields = {"block_sizes": (4, 7), **options} | ({"ar": 0.4} if learn == "full" else {})
    config = BlockDiffusion.model_validate(fields)
    loss, copies = run(monkeypatch, model, config, batch)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss.sum, list(learning.values()), allow_unused=True)
    expected, weight = slow_flat(model, config, batch, copies)
    torch.testing.assert_close(loss.sum, expected)
    torch.testing.assert_close(float(loss.weight), weight)
    slopes = torch.autograd.grad(expected, list(learning.values()), allow_unused=True)
    for name, one, other in zip(learning, found, slopes, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def slow_bound(model: Transformer, shift: bool, batch: Batch, noisy: Corrupted) -> Tensor:
    """What stands in `diffusion.bound`, block by block; without shift all masked positions weigh K / count."""
    total = torch.zeros((), dtype=torch.float64)
    for b in range(len(batch.tokens_BL)):
        log_q, _ = causal(model, batch, b)
        for p in range(1, batch.tokens_BL.shape[1]):
            if shift and learnt(batch, b, p) and noisy.block_BL[b, p] != noisy.block_BL[b, p - 1]:
                total = total - log_q[p - 1, batch.tokens_BL[b, p]]
    for read in blocks_of(model, batch, noisy):
        masked = [i for i in read.at if noisy.masked_BL[read.b, i]]
        others = [i for i in masked if i != read.at[0]] if shift else masked
        for i in others:
            log_p = read.log_p[i - 1] if shift else read.log_p[i]
            weight = (len(read.at) - shift) / len(others)
            total = total - weight * log_p[int(batch.tokens_BL[read.b, i])]
    return total


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("learn", ["adapter", "full"])
def test_bound_equals_slow_evaluation(monkeypatch: pytest.MonkeyPatch, shift: bool, learn: str) -> None:
    model, batch = prepared(learn), batch_of()
    config = BlockDiffusion(block_sizes=(4, 7), weights="bound", shift=shift, ce=1.0, kl=0.0)
    loss, (noisy,) = run(monkeypatch, model, config, batch)
    learning = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss.sum, learning, allow_unused=True)
    expected = slow_bound(model, shift, batch, noisy)
    torch.testing.assert_close(loss.sum, expected)
    numerator, denominator = loss.metrics["bound"]
    torch.testing.assert_close(numerator, expected)
    assert denominator == loss.weight == sum(learnt(batch, b, p) for b in range(2) for p in range(30))
    for one, other in zip(found, torch.autograd.grad(expected, learning, allow_unused=True), strict=True):
        torch.testing.assert_close(one, other)


def test_bound_in_expectation_is_that_of_evaluation() -> None:
    """Against `diffusion.bound`, which draws its masks another way; blocks from the answer's beginning."""
    model = tiny.network(2)
    ids = torch.randint(0, 60, (11,), generator=generator(5))
    batch = Batch(ids[None], torch.arange(11)[None] >= 3, torch.zeros(1, 11, dtype=torch.long))
    objective = build_objective(BlockDiffusion(block_sizes=(8,), weights="bound", ce=1, kl=0), model, compile=False)
    rows = Batch(*(field.expand(400, -1) for field in batch))
    found = []
    for seed in range(8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block, "draw_blocks", lambda _, d, a, g: _whole(d, a))
            found.append(objective(model, rows, generator(seed), ALL, 0.0).sum.detach() / 400)
    expected = nll_bound(model, ids, 3, 8, 2000, generator()).mean()
    values = torch.stack(found)
    assert abs(values.mean() - expected) < 4 * values.std() / len(values) ** 0.5 + 0.01 * expected


def _whole(document_BL: Tensor, learnt_BL: Tensor) -> Blocks:
    rows = len(document_BL)
    return cut_blocks(document_BL, learnt_BL, torch.full((rows,), 8), torch.zeros(rows, dtype=torch.long))


def test_bound_with_blocks_of_one_is_the_ar_loss() -> None:
    """Exactly, value and gradient, whatever noise is drawn."""
    model, batch = prepared("full"), batch_of()
    one = BlockDiffusion(block_sizes=(1,), weights="bound", ce=1.0, kl=0.0)
    losses = [
        build_objective(config, model, compile=False)(model, batch, generator(seed), ALL, 0.0)
        for seed, config in enumerate((AR(), one, one))
    ]
    slopes = [torch.autograd.grad(loss.sum, list(model.parameters())) for loss in losses]
    for loss, slope in zip(losses[1:], slopes[1:], strict=True):
        torch.testing.assert_close(loss.sum, losses[0].sum, rtol=1e-12, atol=0)
        assert loss.weight == losses[0].weight
        for found, expected in zip(slope, slopes[0], strict=True):
            torch.testing.assert_close(found, expected)


def test_tied_rows_know_the_token_before_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows tied: the slow evaluation with the chain behind each noisy row; none: without it."""
    model, batch = prepared("adapter"), batch_of()
    model.adapter = tiny.network(of=tiny.config(chain=3)).adapter
    assert model.adapter is not None
    model.adapter.requires_grad_(True)
    chain = model.adapter.chain
    assert chain is not None
    losses = []
    for share in (1.0, 0.0):
        config = BlockDiffusion(block_sizes=(4, 7), chained=share)
        loss, copies = run(monkeypatch, model, config, batch)
        losses.append(loss.sum.item())
        total = torch.zeros((), dtype=torch.float64)
        for noisy in copies:
            for read in blocks_of(model, batch, noisy):
                log_q = causal(model, batch, read.b)[0].detach()
                for i in read.at[read.settled :]:
                    target = i + 1
                    if target >= batch.tokens_BL.shape[1] or not learnt(batch, read.b, target):
                        continue
                    if target in read.at and not noisy.masked_BL[read.b, target]:
                        continue
                    log_p = read.log_p[i]
                    if share:
                        hidden = model.norm(read.states[i][-1])[None]
                        before = model.embedding(batch.tokens_BL[read.b, i])[None]
                        logits = model.logits(chain(hidden, before))[0]
                        log_p = logits.log_softmax(-1)
                    total = total + row_loss(config, log_p, log_q[target - 1], int(batch.tokens_BL[read.b, target]))
        torch.testing.assert_close(loss.sum, total)
        learning = list(model.adapter.parameters())
        found, slow = (torch.autograd.grad(x, learning, materialize_grads=True) for x in (loss.sum, total))
        for one, other in zip(found, slow, strict=True):
            torch.testing.assert_close(one, other)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("progress", "widest"), [(0.0, 1), (0.3, 4), (0.9, 8)])
def test_curriculum_reaches_the_noise(monkeypatch: pytest.MonkeyPatch, progress: float, widest: int) -> None:
    batch = batch_of()
    config = BlockDiffusion.model_validate({"block_sizes": (8,), "curriculum": {"sizes": (1, 4)}})
    _, (noisy,) = run(monkeypatch, prepared("adapter"), config, batch, progress)
    assert (noisy.end_BL - noisy.start_BL)[batch.loss_mask_BL].max() == widest


def test_leaving_out_prompts_changes_nothing() -> None:
    """Blocks without anything to learn may stay out of the noisy half; too small a share is counted."""
    model = tiny.network()
    tokens = torch.randint(0, 60, (3, 40), generator=generator(1))
    mask = torch.arange(40).expand(3, 40) >= torch.tensor([[20], [4], [36]])
    batch = Batch(tokens, mask, torch.zeros_like(tokens))
    losses = {}
    for share in (1.0, 0.7, 0.2):
        config = BlockDiffusion(block_sizes=(4, 7), ce=0.6, kl=0.4, noisy_share=share)
        losses[share] = build_objective(config, model, compile=False)(model, batch, generator(), ALL, 0.0)
    torch.testing.assert_close(losses[0.7].sum, losses[1.0].sum)
    assert losses[0.7].metrics["left_out"][0] == 0
    assert losses[0.2].metrics["left_out"][0] > 0
    assert losses[0.2].weight + losses[0.2].metrics["left_out"][0] == losses[1.0].weight


def test_rows_of_a_rank_add_up() -> None:
    """Each row has the same noise whichever rank reads it."""
    model, batch = prepared("adapter"), batch_of()
    objective = build_objective(BlockDiffusion(block_sizes=(4,), complementary=True), model, compile=False)
    whole, *parts = (objective(model, batch, generator(), rows, 0.0) for rows in (ALL, slice(0, 1), slice(1, 2)))
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(sum(part.metrics[name] for part in parts), value)


def test_what_cannot_be_trained_is_refused() -> None:
    model = prepared("adapter")
    with pytest.raises(ConfigError, match=r"objective.ar trains the base"):
        build_objective(BlockDiffusion(ar=1.0), model, compile=False)
    with pytest.raises(ConfigError, match="objective ar trains the base"):
        build_objective(AR(), model, compile=False)
