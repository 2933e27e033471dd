"""Sampling: the noise is a pure function, and the frequencies are the distribution's."""

from __future__ import annotations

import torch

from openmercury.diffusion.sample import NO_TOKEN, Penalties, RowParams, choose, gumbel_noise, penalise, truncate


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


def penalties(presence: float, frequency: float, repetition: float) -> Penalties:
    """Two texts: prompt 0 1, answer 1 2 2, then ahead 3 4; and prompt 5, no answer, ahead 5 5."""
    prompt, answer = torch.zeros(2, 8), torch.zeros(2, 8)
    prompt[0, [0, 1]], prompt[1, 5] = 1, 1
    answer[0, 1], answer[0, 2] = 1, 2
    return Penalties(
        text_M=torch.tensor([0, 0, 0, 1, 1]),
        ahead_M=torch.tensor([0, 1, 2, 0, 2]),
        ahead_RA=torch.tensor([[3, 4], [5, 5]]),
        prompt_RV=prompt,
        answer_RV=answer,
        presence_R=torch.tensor([presence, 0.0]),
        frequency_R=torch.tensor([frequency, frequency]),
        repetition_R=torch.tensor([repetition, repetition]),
    )


def test_penalties_count_what_a_row_sees() -> None:
    """OpenAI's two count the answer and what is read clean behind it, the repetition penalty the prompt as well."""
    flat = torch.zeros(5, 8)
    once, twice = 0.5 + 0.25, 0.5 + 2 * 0.25
    expected = -torch.tensor(
        [
            [0, once, twice, 0, 0, 0, 0, 0],
            [0, once, twice, once, 0, 0, 0, 0],
            [0, once, twice, once, once, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 2 * 0.25, 0, 0],
        ]
    )
    torch.testing.assert_close(penalise(flat, penalties(0.5, 0.25, 1.0)), expected)
    logits = torch.tensor([2.0, -2.0]).repeat(5, 4)
    got = penalise(logits, penalties(0.0, 0.0, 2.0))
    seen = [{0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}, {5}, {5}]
    for row, tokens in enumerate(seen):
        for token in range(8):
            x = float(logits[row, token])
            assert float(got[row, token]) == ((x / 2 if x > 0 else x * 2) if token in tokens else x)


def test_penalties_that_are_off_change_no_bit() -> None:
    logits = torch.randn(5, 8, dtype=torch.float64)
    logits[:, 7] = float("-inf")
    assert torch.equal(penalise(logits, penalties(0.0, 0.0, 1.0)), logits)


def test_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, given = torch.randn(2, 8), penalties(0.0, 0.0, 1.3)
    texts = (torch.tensor([[0, 1, 1, 2, 2, 3, 4]]), torch.tensor([[5, 5, 5]]))
    process = RepetitionPenaltyLogitsProcessor(1.3)
    theirs = torch.cat([process(text, row[None].clone()) for text, row in zip(texts, logits, strict=True)])
    torch.testing.assert_close(penalise(logits, given.rows(torch.tensor([2, 4]))), theirs)


def test_rows_that_are_no_numbers_choose_nothing() -> None:
    logits = torch.randn(5, 8)
    logits[0, 3] = float("nan")
    logits[1, 3] = float("inf")
    logits[2] = float("-inf")
    logits[3, 3] = float("-inf")
    for heat in (0.0, 0.8):
        choice = choose(logits, rows(5, heat))
        assert choice.token_M[:3].tolist() == [NO_TOKEN] * 3
        assert (choice.token_M[3:] >= 0).all()
        assert [float(field[0]) for field in choice[1:]] == [0.0, torch.inf, -1.0]
        assert all(field[3:].isfinite().all() for field in choice)
