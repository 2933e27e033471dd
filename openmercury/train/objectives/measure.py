"""What is reported of a block-diffusion step beside its loss."""

from __future__ import annotations

import torch
from torch import Tensor

from openmercury.diffusion.corrupt import Corrupted

LEVELS = 4  # metric buckets of the noise level; the last holds fully masked blocks


def by_level(level_M: Tensor, ce_M: Tensor, hit_M: Tensor) -> dict[str, Tensor]:
    """Cross-entropy by noise level, and the share of right predictions in fully masked blocks."""
    bucket_M = torch.where(level_M >= 1, LEVELS - 1, (level_M * (LEVELS - 1)).long().clamp(max=LEVELS - 2))
    table = torch.zeros(LEVELS, 4, device=ce_M.device, dtype=torch.float64)
    one_M = torch.ones_like(ce_M)
    table = table.index_add(0, bucket_M, torch.stack((ce_M, one_M, hit_M.to(ce_M.dtype), one_M), dim=-1).double())
    found = {f"ce_level_{number}": table[number, :2] for number in range(LEVELS)}
    return {**found, "hit_full": table[-1, 2:]}


def draft_prefix(noisy: Corrupted, at_M: Tensor, hit_M: Tensor) -> Tensor:
    """Length of the correct prefix of blocks that are fully masked and asked as a whole; their number. [2]

    `at_M` are the flat places of the rows that were asked.
    """
    block_BL, length = noisy.block_BL, noisy.block_BL.shape[1]
    asked_BL, hit_BL = torch.zeros_like(noisy.masked_BL), torch.zeros_like(noisy.masked_BL)
    asked_BL.view(-1).index_fill_(0, at_M, True)
    hit_BL.view(-1).index_copy_(0, at_M, hit_M)
    zero = torch.zeros_like(block_BL)
    size_BL = noisy.end_BL - noisy.start_BL
    counted = zero.scatter_add(1, block_BL, (asked_BL & (noisy.level_BL >= 1)).long()).gather(1, block_BL)
    at_BL = torch.arange(length, device=zero.device) - noisy.start_BL
    miss_BL = torch.where(hit_BL, length, at_BL)
    first_miss = torch.full_like(zero, length).scatter_reduce(1, block_BL, miss_BL, "amin").gather(1, block_BL)
    usable = (counted == size_BL) & (size_BL > 1) & (at_BL == 0)
    right = torch.minimum(first_miss, size_BL) * usable
    return torch.stack((right.sum(), usable.sum())).double()
