"""The one attention rule. Every token carries (`end`, `group`); `group` is −1 on clean tokens.

    token q sees token k   ⇔   k is clean and position(k) < end(q),   or   group(q) = group(k) ≥ 0

A clean token has end = its position + 1 and so is causal. The noisy tokens of one block share a group, and their end
is where the block starts. Prefill, decoding, verification, commit and training all follow from this line.

Training rows are [noisy ‖ clean] over the same L positions. With blocks of 4 starting at offset 1:

    position   0 1 2 3 4 5 6 7 8          noisy 5 sees clean 0‥4 and noisy 5‥8
    block      0 1 1 1 1 2 2 2 2          clean 5 sees clean 0‥5
"""

from __future__ import annotations

import torch
from torch import Tensor

CLEAN = -1  # the group of a clean token
NOBODY = -2  # the group of a key slot that holds no token of this forward


def visible(end_BQ: Tensor, group_BQ: Tensor, position_BT: Tensor, group_BT: Tensor) -> Tensor:
    """The rule as a boolean mask [B, Q, T]: may query q see key t?"""
    before = (group_BT == CLEAN)[:, None, :] & (position_BT[:, None, :] < end_BQ[:, :, None])
    together = (group_BQ >= 0)[:, :, None] & (group_BQ[:, :, None] == group_BT[:, None, :])
    return before | together


def block_index(length: int, block_size_B: Tensor, offset_B: Tensor) -> Tensor:
    """Which block each position lies in, [B, L]; block 0 is the stub that a random offset leaves in front."""
    position = torch.arange(length, device=block_size_B.device)
    return (position[None, :] + block_size_B[:, None] - offset_B[:, None]) // block_size_B[:, None]


def block_start(length: int, block_size_B: Tensor, offset_B: Tensor) -> Tensor:
    """First position of the block of each position, [B, L]."""
    index = block_index(length, block_size_B, offset_B)
    return (index * block_size_B[:, None] - block_size_B[:, None] + offset_B[:, None]).clamp(min=0)


def block_end(length: int, block_size_B: Tensor, offset_B: Tensor) -> Tensor:
    """Behind the last position of the block of each position, [B, L]."""
    index = block_index(length, block_size_B, offset_B)
    return (index * block_size_B[:, None] + offset_B[:, None]).clamp(max=length)
