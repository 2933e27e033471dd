"""Unmask policies on a hand-made block."""

from __future__ import annotations

import math

import pytest
import torch

from openmercury.diffusion.unmask import Policy, accept
from openmercury.diffusion.verify import UNUSED, accepted_length, likely_lengths, standing_length

CONFIDENCE = torch.tensor([[0.3, 0.95, 0.6, 0.99, 0.2]])
ENTROPY = torch.tensor([[2.0, 0.2, 1.0, 0.05, 3.0]])
MASKED = torch.tensor([[True, True, True, False, True]])


def policy(threshold: float = 2.0, quota: int = 0, bound: float = -1.0) -> Policy:
    return Policy(torch.tensor([threshold]), torch.tensor([quota]), torch.tensor([bound]))


def test_threshold_is_on_the_joint_confidence() -> None:
    assert accept(CONFIDENCE, ENTROPY, MASKED, policy(0.9)).tolist() == [[True, False, False, False, False]]
    sure = torch.tensor([[0.99, 0.95, 0.6, 0.99, 0.2]])
    assert accept(sure, ENTROPY, MASKED, policy(0.9)).tolist() == [[True, True, False, False, False]]
    assert accept(sure, ENTROPY, MASKED, policy(0.5)).tolist() == [[True, True, True, False, False]]
    assert accept(sure, ENTROPY, MASKED, policy(1.0)).tolist() == [[True, False, False, False, False]]


def test_the_first_masked_position_is_always_accepted() -> None:
    masked = torch.tensor([[False, False, True, False, True]])
    for rule in (policy(0.9), policy(quota=1)):
        assert accept(CONFIDENCE, ENTROPY, masked, rule).tolist() == [[False, False, True, False, False]]
    assert not accept(CONFIDENCE, ENTROPY, torch.zeros_like(masked), policy(0.1, 5, 9.0)).any()


def test_quota_counts_the_first_position() -> None:
    assert accept(CONFIDENCE, ENTROPY, MASKED, policy(quota=1)).tolist() == [[True, False, False, False, False]]
    assert accept(CONFIDENCE, ENTROPY, MASKED, policy(quota=3)).tolist() == [[True, True, True, False, False]]


def test_entropy_bound_leaves_out_the_largest() -> None:
    # In order: 0 (first), 0.2, 1.0, 3.0; Σ − max = 0, 0, 0.2, 1.2.
    assert accept(CONFIDENCE, ENTROPY, MASKED, policy(bound=0.1)).tolist() == [[True, True, False, False, False]]
    assert accept(CONFIDENCE, ENTROPY, MASKED, policy(bound=0.3)).tolist() == [[True, True, True, False, False]]
    assert accept(CONFIDENCE, ENTROPY, MASKED, policy(bound=2.0)).tolist() == [[True, True, True, False, True]]


def test_accepted_length() -> None:
    draft = torch.tensor([[1, 2, 3], [9, 2, 3], [1, 2, -1]])
    assert accepted_length(draft, torch.tensor([[1, 2, 4], [1, 2, 3], [1, 2, 3]])).tolist() == [2, 0, 2]


@pytest.mark.parametrize("most", [1, 3, 8])
def test_likely_lengths(most: int) -> None:
    """Against the definition; certain drafts are kept whole, of equals the shorter comes first, none counts twice."""
    draw = torch.Generator().manual_seed(0)
    sure = torch.rand(50, 6, generator=draw, dtype=torch.float64)
    sure[0], sure[1], sure[2, 3] = 1.0, 0.0, 1.0
    count = torch.randint(0, 7, (50,), generator=draw)
    found = likely_lengths(sure, count, most).tolist()
    for c, n, lengths in zip(sure.tolist(), count.tolist(), found, strict=True):
        odds = [math.prod(c[:k]) * (1 - c[k]) for k in range(n)] + [math.prod(c[:n])]
        best = sorted(sorted(range(n + 1), key=lambda k: -odds[k])[:most])
        if len(set(odds)) == n + 1:  # what rounding may order otherwise is left out
            assert lengths == best + [UNUSED] * (most - len(best))
        assert len(set(lengths) - {UNUSED}) == min(most, n + 1)
    assert likely_lengths(sure[:1], torch.tensor([4]), 1).tolist() == [[4]]  # certain: kept whole


def test_standing_length() -> None:
    odds = torch.tensor([[1.0, 0.4, 0.9], [1.0, 0.4, 0.9], [0.1, 1.0, 1.0]])
    settled = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    assert standing_length(odds, settled, torch.tensor([0.5, 0.3, 0.3])).tolist() == [1, 2, 0]
    assert standing_length(odds, settled, torch.zeros(3)).tolist() == [3, 2, 3]
