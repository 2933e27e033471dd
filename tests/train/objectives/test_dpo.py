"""DPO: value and gradient by definition, its sign, and the noise that is shared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import Corrupted
from openmercury.model.transformer import Transformer
from openmercury.train.config import DPO
from openmercury.train.objectives import build_objective, dpo
from tests import tiny
from tests.train.objectives.slow import blocks_of, causal, learnt
from tests.train.objectives.test_block import ALL, generator, prepared


def pairs() -> Batch:
    """Row 0: two pairs with prompts of 3 and 2; row 1: one pair of answers of unlike length and an empty tail."""
    documents = [[(3, 5), (3, 4), (2, 4), (2, 5)], [(4, 8), (4, 3)]]
    tokens = torch.randint(0, 60, (2, 30), generator=generator(8))
    mask, document = torch.zeros(2, 30, dtype=torch.bool), torch.full((2, 30), -1)
    for b, row in enumerate(documents):
        at = 0
        for number, (prompt, answer) in enumerate(row):
            document[b, at : at + prompt + answer] = number
            mask[b, at + prompt : at + prompt + answer] = True
            at += prompt + answer
    return Batch(tokens, mask, document)


def moved(model: Transformer) -> Transformer:
    """The model a little further, as after some steps."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator(9), dtype=p.dtype)
    return model


def slow_scores(model: Transformer, shift: bool, batch: Batch, noisy: Corrupted) -> dict[tuple[int, int], Tensor]:
    """The bound of each document by its definition."""
    found: dict[tuple[int, int], Tensor] = {}
    zero = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        log_q, _ = causal(model, batch, b)
        for p in range(1, 30):
            if shift and learnt(batch, b, p) and noisy.block_BL[b, p] != noisy.block_BL[b, p - 1]:
                key = (b, int(batch.document_BL[b, p]))
                found[key] = found.get(key, zero) + log_q[p - 1, batch.tokens_BL[b, p]]
    for read in blocks_of(model, batch, noisy):
        masked = [i for i in read.at if noisy.masked_BL[read.b, i]]
        others = [i for i in masked if i != read.at[0]] if shift else masked
        key = (read.b, int(batch.document_BL[read.b, read.at[0]]))
        for i in others:
            log_p = read.log_p[i - 1] if shift else read.log_p[i]
            weight = (len(read.at) - shift) / len(others)
            found[key] = found.get(key, zero) + weight * log_p[int(batch.tokens_BL[read.b, i])]
    return found


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("learn", ["adapter", "full"])
def test_equals_slow_evaluation(monkeypatch: pytest.MonkeyPatch, shift: bool, learn: str) -> None:
    model, batch = prepared(learn), pairs()
    start = copy.deepcopy(model)
    config = DPO(block_sizes=(4,), shift=shift, beta=0.3, samples=2)
    objective = build_objective(config, model, compile=False)
    drawn: list[Corrupted] = []
    original = dpo.corrupt
    monkeypatch.setattr(dpo, "corrupt", lambda *args: drawn.append(original(*args)) or drawn[-1])  # type: ignore[func-returns-value]
    loss = objective(moved(model), batch, generator(2), ALL, 0.0)
    assert len(drawn) == 2
    ours, theirs = ([slow_scores(which, shift, batch, noisy) for noisy in drawn] for which in (model, start))
    expected, right = torch.zeros((), dtype=torch.float64), 0
    for b, k in ((0, 0), (0, 2), (1, 0)):
        margin = sum(
            sign * (own[b, k + side] - other[b, k + side].detach()) / 2
            for own, other in zip(ours, theirs, strict=True)
            for side, sign in ((0, 1), (1, -1))
        )
        expected = expected - F.logsigmoid(config.beta * margin)
        right += bool(margin > 0)
    torch.testing.assert_close(loss.sum, expected)
    assert loss.weight == 3
    assert loss.metrics["preferred"].tolist() == [right, 3]
    learning = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss.sum, learning, allow_unused=True)
    for one, other in zip(found, torch.autograd.grad(expected, learning, allow_unused=True), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("learn", ["adapter", "full"])
def test_a_step_prefers_the_chosen(learn: str) -> None:
    """It begins at log 2 a pair; steps down, on the same noise, raise chosen answers above rejected ones."""
    model, batch = prepared(learn), pairs()
    objective = build_objective(DPO(block_sizes=(4,), samples=4), model, compile=False)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-3)
    first = objective(model, batch, generator(0), ALL, 0.0)
    torch.testing.assert_close(float(first.sum.detach() / first.weight), torch.tensor(2.0).log().item())
    for _ in range(4):
        optimizer.zero_grad()
        objective(model, batch, generator(0), ALL, 0.0).sum.backward()
        optimizer.step()
    last = objective(model, batch, generator(0), ALL, 0.0)
    assert last.sum < first.sum
    assert last.metrics["margin"][0] > 0
    assert last.metrics["chosen"][0] > last.metrics["rejected"][0]


def test_equal_answers_have_no_preference() -> None:
    """Chosen and rejected alike are masked alike, so nothing is left of the noise and no gradient either."""
    model = prepared("adapter")
    half = torch.randint(0, 60, (15,), generator=generator(4))
    batch = Batch(half.repeat(2)[None], (torch.arange(30) % 15 >= 4)[None], (torch.arange(30) // 15)[None])
    objective = build_objective(DPO(block_sizes=(4, 7), samples=1), model, compile=False)
    loss = objective(moved(model), batch, generator(3), ALL, 0.0)
    torch.testing.assert_close(float(loss.metrics["margin"][0]), 0.0, atol=1e-5, rtol=0)
    loss.sum.backward()
    assert model.adapter is not None
    gradient = torch.cat([p.grad.flatten() for p in model.adapter.parameters() if p.grad is not None])
    assert gradient.abs().max() < 1e-5


def test_rejected_texts_take_the_noise_of_chosen_ones() -> None:
    batch = pairs()
    partner = dpo.partners(batch.document_BL, batch.loss_mask_BL)
    assert partner[1, 16:19].tolist() == [4, 5, 6]  # answers begin at 4 and 16
    assert partner[0, 11:15].tolist() == [3, 4, 5, 6]
    assert torch.equal(partner[0, :8], torch.arange(8))


def test_the_reference_stays_where_it_was() -> None:
    model = prepared("adapter")
    objective = build_objective(DPO(), model, compile=False)
    assert isinstance(objective, dpo.DPOObjective)
    before = tiny.network()
    moved(model)
    for name, p in objective.reference.named_parameters():
        assert torch.equal(p, before.get_parameter(name)), name
    assert objective.reference.layers is model.layers  # the frozen base is not held twice
    assert model.adapter is not None
    assert all(p.requires_grad for p in model.adapter.parameters())
