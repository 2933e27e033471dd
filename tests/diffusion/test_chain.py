"""The chain of drafts against plain loops: what is listed, what is chosen of it, and how sure that is."""

from __future__ import annotations

import pytest
import torch

from openmercury.diffusion import chain
from openmercury.diffusion.chain import LISTED, RUN, Linker, shortlist
from openmercury.diffusion.sample import NO_TOKEN, RowParams, Sampling, choose, gumbel_noise, scores
from tests import tiny

KINDS: tuple[Sampling, ...] = ("greedy", "sampled", "truncated")


def rows(kind: Sampling, count: int) -> RowParams:
    """Cold and warm rows by turns; all cold where sampling is greedy."""
    warm = torch.arange(count) % 2 * (kind != "greedy")
    return RowParams(
        warm * 0.7,
        warm * 20 * (kind == "truncated"),
        torch.ones(count),
        torch.full((count,), 5),
        torch.arange(count),
        torch.zeros(count, dtype=torch.long),
    )


@pytest.mark.parametrize("kind", ["greedy", "sampled"])
def test_the_best_of_each_run_is_listed_best_first(kind: Sampling) -> None:
    logits, params = torch.randn(4, 11 * RUN + 30, dtype=torch.float64), rows(kind, 4)
    listed, token = shortlist(*scores(logits, params, kind)), choose(logits, params, kind).token_M
    assert torch.equal(listed.token_MC[:, 0], token)
    noise = gumbel_noise(params.seed_M, params.position_M, logits.shape[1])
    for row, heat in enumerate(params.temperature_M.tolist()):
        plain = logits[row] / (heat or 1.0)
        score = plain + noise[row] if heat else plain
        best = [begin + int(run.argmax()) for begin, run in zip(range(0, 12 * RUN, RUN), score.split(RUN), strict=True)]
        best = sorted(best, key=lambda each: -float(score[each]))[:LISTED]
        assert listed.token_MC[row].tolist() == best
        torch.testing.assert_close(listed.score_MC[row], score[best])
        torch.testing.assert_close(listed.logit_MC[row], plain[best])


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_is_the_best_of_its_shortlist_behind_the_token_before(
    monkeypatch: pytest.MonkeyPatch, kind: Sampling
) -> None:
    monkeypatch.setattr(chain, "RUN", 6)  # so that there is something to choose from
    model, (texts, width) = tiny.network(of=tiny.config(chain=5)), (6, 4)
    assert model.chain is not None
    linker = Linker(model, model.chain)
    hidden = torch.randn(texts, width, model.config.d_model, dtype=torch.float64)
    logits, each = model.logits(hidden.flatten(0, 1)), rows(kind, texts)
    params = RowParams(*(field.repeat_interleave(width) for field in each))
    params = params._replace(position_M=torch.arange(texts * width))
    whole, listed = choose(logits, params, kind), shortlist(*scores(logits, params, kind))
    given = torch.randint(0, 63, (texts, width))
    given[1:, 1:][torch.rand(texts - 1, width - 1) < 0.6] = NO_TOKEN
    given[0], given[1, 1:] = NO_TOKEN, NO_TOKEN
    shaped = chain.Shortlist(*(field.view(texts, width, -1) for field in listed))
    token, sure = linker(given, hidden, shaped, whole.confidence_M.view(texts, width), each.temperature_M)

    plain, score = scores(logits, params, kind)
    for text in range(texts):
        before, heat = 0, float(each.temperature_M[text]) or 1.0
        for k in range(width):
            row = text * width + k
            before = before if given[text, k] == NO_TOKEN else int(given[text, k])
            told = model.logits(model.chain(hidden[text, k][None], model.embedding.weight[before][None]))[0]
            told = torch.where(plain[row].isfinite(), told / heat, -torch.inf)  # what is cut off stays so
            chosen = listed.token_MC[row]
            noise = (score - plain)[row, chosen].nan_to_num()  # of two that are cut off
            before = int(chosen[(told[chosen] + noise).argmax()])
            assert token[text, k] == before
            mixed = plain[row].clone()
            mixed[chosen] = told[chosen]
            torch.testing.assert_close(sure[text, k], mixed.softmax(-1)[before])
    assert (token.flatten() != whole.token_M).any()
