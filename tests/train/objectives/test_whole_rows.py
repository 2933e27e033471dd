"""`ar` and `masked_diffusion` against slow evaluations, document by document."""

from __future__ import annotations

import math

import pytest
import torch

from openmercury.data.loader import Batch
from openmercury.model.attention import DenseAttend
from openmercury.train.config import AR, MaskedDiffusion
from openmercury.train.objectives import build_objective
from openmercury.train.objectives.masked import MaskedDiffusionObjective
from tests import tiny
from tests.train.objectives.slow import batch_of, causal, learnt
from tests.train.objectives.test_block import ALL, generator, prepared


def test_ar_equals_autograd() -> None:
    model, batch = prepared("full"), batch_of()
    loss = build_objective(AR(), model, compile=False)(model, batch, generator(), ALL, 0.0)
    found = torch.autograd.grad(loss.sum, list(model.parameters()))
    expected, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(2):
        log_p, _ = causal(model, batch, b)
        for p in range(30):
            if learnt(batch, b, p):
                expected, count = expected - log_p[p - 1, batch.tokens_BL[b, p]], count + 1
    torch.testing.assert_close(loss.sum, expected)
    assert loss.weight == count
    for one, other in zip(found, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("learn", ["adapter", "full"])
def test_masked_diffusion_equals_slow_evaluation(monkeypatch: pytest.MonkeyPatch, shift: bool, learn: str) -> None:
    """Each document by itself, all of it in sight; the rates are those of the masks that were drawn."""
    model, batch, config = prepared(learn), batch_of(), MaskedDiffusion(shift=shift)
    drawn = []
    original = MaskedDiffusionObjective.noise
    monkeypatch.setattr(
        MaskedDiffusionObjective,
        "noise",
        lambda *args: drawn.append(original(*args)) or drawn[-1],  # type: ignore[func-returns-value]
    )
    loss = build_objective(config, model, compile=False)(model, batch, generator(4), ALL, 0.0)
    learning = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss.sum, learning, allow_unused=True)
    expected = torch.zeros((), dtype=torch.float64)
    for b, document in ((0, 0), (0, 1), (1, 0)):
        at = [p for p in range(30) if batch.document_BL[b, p] == document]
        masked = [p for p in at if drawn[0].masked_BL[b, p]]
        assert masked
        assert all(learnt(batch, b, p) for p in masked)
        ids = torch.tensor([[tiny.MASK if p in masked else int(batch.tokens_BL[b, p]) for p in at]])
        attend = DenseAttend(torch.ones(1, len(at), len(at), dtype=torch.bool))
        hidden = model(ids, torch.tensor([at]), attend, torch.ones_like(ids, dtype=torch.bool))
        log_p = model.logits(hidden)[0].log_softmax(-1)
        weight = drawn[0].weight_BL[b, at].unique()
        assert len(weight) == 1
        for p in masked:
            expected = expected - weight[0].double() * log_p[at.index(p) - shift, batch.tokens_BL[b, p]]
    torch.testing.assert_close(loss.sum, expected)
    torch.testing.assert_close(loss.metrics["bound"][0], expected)
    for one, other in zip(found, torch.autograd.grad(expected, learning, allow_unused=True), strict=True):
        torch.testing.assert_close(one, other)


def test_masked_diffusion_rates() -> None:
    """t is uniform, and a token is masked with probability t: 1/t of the masked ones count every token once."""
    learnt_rows = torch.ones(4000, 21, dtype=torch.bool)
    batch = Batch(torch.zeros(4000, 21, dtype=torch.long), learnt_rows, torch.zeros(4000, 21, dtype=torch.long))
    noisy = MaskedDiffusionObjective(MaskedDiffusion(min_rate=0.05)).noise(batch, 63, generator())
    rate = 1 / noisy.weight_BL[:, 0]
    assert abs(rate.mean() - 0.525) < 0.02
    assert rate.min() >= 0.05
    assert not noisy.masked_BL[:, 0].any()  # nothing predicts the first token
    assert abs(float((noisy.masked_BL * noisy.weight_BL)[:, 1:].mean()) - 1) < 0.05
    high = rate > 0.9
    assert math.isclose(float(noisy.masked_BL[high, 1:].double().mean()), float(rate[high].mean()), abs_tol=0.02)
