"""How many positions of a block are masked, and what each then weighs. Draws are uniforms in [0, 1), one a position.

- flat    noise level t = 1 with probability `full_share`, else uniform in (low, high): t · K positions of K, rounded at
          random to a neighbouring whole number, all of one weight. A fully masked block is the state every draft starts
          from, so it deserves its own share; levels near 0 teach next to nothing and only add variance (clipped
          schedules: arXiv 2503.09573 §5.3)
- bound   the count is uniform and weighs K / count: the NELBO of masked diffusion, t uniform with weight 1/t,
          integrated over t given the count (see `bound`)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """How many positions to mask in the block of each position, [B, L], and the weight of each of them."""

    count_BL: Tensor
    weight_BL: Tensor


def flat_counts(size_BL: Tensor, draws_3BL: Tensor, full_share: float, low: float, high: float) -> Counts:
    """At least one position of each block; the draws must be the same all over a block."""
    level_BL, full_BL, round_BL = draws_3BL
    rate_BL = torch.where(full_BL < full_share, 1.0, low + (high - low) * level_BL)
    count_BL = (rate_BL * size_BL + round_BL).long().clamp(min=1).minimum(size_BL)
    return Counts(count_BL, torch.ones_like(rate_BL))


def bound_counts(size_BL: Tensor, level_BL: Tensor) -> Counts:
    """Uniform on 1 … size; 0 where the size is 0."""
    count_BL = (1 + (level_BL * size_BL).long()).minimum(size_BL)
    return Counts(count_BL, size_BL.double() / count_BL.clamp(min=1))
