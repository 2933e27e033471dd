"""Unmask policies: which predictions of a block to accept in this denoising step.

The first masked position is always accepted. Its prediction comes from the clean side, so it is the AR model's own
choice; and so every step makes progress, whatever the policy.

- threshold τ      in order of confidence c, the first position in front, accept while Π c stays above τ: what is
                   accepted together is right together with probability τ, were positions independent. The plain
                   rule c > τ (Fast-dLLM, arXiv 2505.22618) settles tokens behind a first token that is itself in
                   doubt, and the two then contradict each other ("import is_palindrome(text)")
- steps s          accept the K/s most confident positions (LLaDA, arXiv 2502.09992)
- entropy bound γ  in order of entropy H, accept while Σ H − max H ≤ γ (EB-sampler, arXiv 2505.24857)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Policy(NamedTuple):
    """Policy of R requests as tensors. Off values: threshold 2, quota 0, entropy_bound −1."""

    threshold_R: Tensor
    quota_R: Tensor
    entropy_bound_R: Tensor


def accept(confidence_RK: Tensor, entropy_RK: Tensor, masked_RK: Tensor, policy: Policy) -> Tensor:
    """Boolean [R, K]: the masked positions to accept now."""
    first = masked_RK & (masked_RK.long().cumsum(-1) == 1)
    score = confidence_RK.masked_fill(~masked_RK, -1.0).masked_fill(first, torch.inf)
    order = score.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1, stable=True)
    joint = confidence_RK.masked_fill(~masked_RK, 0.0).gather(-1, order).cumprod(-1)
    confident = (joint > policy.threshold_R[:, None]).gather(-1, rank)
    in_quota = rank < policy.quota_R[:, None]
    entropy = entropy_RK.masked_fill(~masked_RK, torch.inf).masked_fill(first, 0.0)
    ordered, index = entropy.sort(dim=-1, stable=True)
    # Sorted upwards, the largest entropy so far is the last one: Σ − max is the sum over those before it.
    before = torch.cat((torch.zeros_like(ordered[:, :1]), ordered[:, :-1].cumsum(-1)), dim=-1)
    fits = (before <= policy.entropy_bound_R[:, None]) & ordered.isfinite()
    bounded = torch.zeros_like(masked_RK).scatter(-1, index, fits)
    return (confident | in_quota | bounded | first) & masked_RK
