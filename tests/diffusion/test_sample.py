"""Sampling: the noise is a pure function, and the frequencies are the distribution's."""

from __future__ import annotations

import torch

from openmercury.diffusion.sample import RowParams, choose, gumbel_noise, truncate


def rows(count: int, temperature: float, *, top_k: int = 0, top_p: float = 1.0, seed: int = 7) -> RowParams:
    return RowParams(
        torch.full((count,), temperature),
        torch.full((count,), top_k),
        torch.full((count,), top_p),
        torch.full((count,), seed),
        torch.arange(count),
        torch.arange(count) % 4,
    )


def test_greedy_is_argmax() -> None:
    logits = torch.randn(5, 33)
    choice = choose(logits, rows(5, 0.0))
    assert torch.equal(choice.token_M, logits.argmax(-1))
    torch.testing.assert_close(choice.confidence_M, logits.softmax(-1).max(-1).values)
    p = logits.softmax(-1)
    torch.testing.assert_close(choice.entropy_M, -(p * p.log()).sum(-1))
    assert torch.equal(choice.odds_M[:4] < 1, torch.arange(4) != choice.token_M[:4])


def test_noise_depends_on_seed_position_and_token_only() -> None:
    seed, position = torch.tensor([1, 1, 2, 2**40 + 1]), torch.tensor([0, 5, 0, 0])
    noise = gumbel_noise(seed, position, 50)
    assert torch.equal(noise[1:2], gumbel_noise(seed[1:2], position[1:2], 50))
    assert torch.equal(noise[:, :20], gumbel_noise(seed, position, 20))
    assert len({tuple(row.tolist()) for row in noise}) == 4


def test_sampling_follows_the_distribution() -> None:
    """Chi-square over 20,000 positions, 99.9 % quantile of 7 degrees of freedom is 24.3."""
    count = 20_000
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, 0.2])
    for temperature in (0.7, 1.0, 1.6):
        token = choose(logits.expand(count, -1), rows(count, temperature)).token_M
        expected = (logits / temperature).softmax(-1) * count
        seen = torch.bincount(token, minlength=8)
        assert float(((seen - expected) ** 2 / expected).sum()) < 24.3


def test_top_k_and_top_p() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    off, one = torch.tensor([0, 0]), torch.tensor([1.0, 1.0])
    assert torch.equal(truncate(logits, off, one), logits)
    kept = truncate(logits, torch.tensor([2, 1]), one).isfinite()
    assert kept.tolist() == [[True, True, False, False], [False, False, False, True]]
    p = logits[0].softmax(-1)
    kept = truncate(logits, off, torch.tensor([float(p[0]) - 0.01, float(p[0] + p[1]) - 0.01])).isfinite()
    assert kept.tolist() == [[True, False, False, False], [False, False, True, True]]
    token = choose(logits[:1].expand(500, -1), rows(500, 2.0, top_k=2)).token_M
    assert set(token.tolist()) == {0, 1}
