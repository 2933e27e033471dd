"""The forward process: clean rows to noisy ones, block by block, with the absorbing mask token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openmercury.model.masks import block_end, block_index, block_start


class Corrupted(NamedTuple):
    """Noisy rows: ids with masks, which positions are masked, noise level, block index, start and end of each."""

    ids_BL: Tensor
    masked_BL: Tensor
    rate_BL: Tensor
    block_BL: Tensor
    start_BL: Tensor
    end_BL: Tensor


def corrupt(
    tokens_BL: Tensor,
    block_size_B: Tensor,
    offset_B: Tensor,
    rate_BC: Tensor,
    mask_id: int,
    generator: torch.Generator,
) -> Corrupted:
    """Mask each position with its block's probability; `rate_BC` holds at least one rate for every block of a row.

    The first position of a block is always masked: decoding commits the settled prefix at each step, so a block never
    begins with a settled token.
    """
    rows, length = tokens_BL.shape
    block_BL = block_index(length, block_size_B, offset_B)
    start_BL = block_start(length, block_size_B, offset_B)
    rate_BL = rate_BC.gather(1, block_BL)
    masked_BL = torch.rand(rows, length, generator=generator, device=tokens_BL.device) < rate_BL
    masked_BL |= torch.arange(length, device=tokens_BL.device) == start_BL
    end_BL = block_end(length, block_size_B, offset_B)
    return Corrupted(torch.where(masked_BL, mask_id, tokens_BL), masked_BL, rate_BL, block_BL, start_BL, end_BL)
