"""Unmask policies on a hand-made block."""

from __future__ import annotations

import torch

from openmercury.diffusion.unmask import Policy, accept
from openmercury.diffusion.verify import accepted_length, standing_length

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


def test_standing_length() -> None:
    odds = torch.tensor([[1.0, 0.4, 0.9], [1.0, 0.4, 0.9], [0.1, 1.0, 1.0]])
    settled = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    assert standing_length(odds, settled, torch.tensor([0.5, 0.3, 0.3])).tolist() == [1, 2, 0]
    assert standing_length(odds, settled, torch.zeros(3)).tolist() == [3, 2, 3]
