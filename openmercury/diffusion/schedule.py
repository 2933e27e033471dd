"""Noise levels of training blocks. t ∈ (0, 1] is the probability that a position of the block is masked."""

from __future__ import annotations

import torch
from torch import Tensor


def block_rates(rows: int, blocks: int, full_share: float, low: float, generator: torch.Generator) -> Tensor:
    """Noise level of each block, [B, blocks]: 1 with probability `full_share`, else uniform in (low, 1).

    A fully masked block is the state every draft starts from, so it deserves its own share; levels near 0 teach next
    to nothing and only add variance (clipped schedules: arXiv 2503.09573 §5.3).
    """
    device = generator.device
    uniform = low + (1 - low) * torch.rand(rows, blocks, generator=generator, device=device)
    full = torch.rand(rows, blocks, generator=generator, device=device) < full_share
    return torch.where(full, 1.0, uniform)
