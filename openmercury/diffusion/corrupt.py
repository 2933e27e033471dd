"""The forward process: clean rows to noisy ones, block by block, with the absorbing mask token.

Only what is learnt is ever masked. A run is a stretch of one document that is learnt as a whole (an answer) or not at
all (a prompt); a grid of blocks is laid over each run from its beginning, which is where decoding starts one too. With
K = 4 and offset 1, p a prompt:

    run      p p p  a a a a a a a          settled: the positions of a block before its first mask. Decoding commits
    block    0 0 0  1 2 2 2 2 3 3          them at each step, so they run clean: causal, on base weights
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Blocks(NamedTuple):
    """Number within the row, first position and size of the block of each position, int64 [B, L]."""

    index_BL: Tensor
    start_BL: Tensor
    size_BL: Tensor


class Corrupted(NamedTuple):
    """Noisy rows: ids with masks, which positions are masked or settled, the share of the block that is masked, the
    weight of a masked position, and number, start and end of the block, each [B, L]."""

    ids_BL: Tensor
    masked_BL: Tensor
    settled_BL: Tensor
    level_BL: Tensor
    weight_BL: Tensor
    block_BL: Tensor
    start_BL: Tensor
    end_BL: Tensor


def changes(value_BL: Tensor) -> Tensor:
    """Where a value differs from the one before it; the first position does."""
    first = torch.ones_like(value_BL[:, :1], dtype=torch.bool)
    return torch.cat((first, value_BL[:, 1:] != value_BL[:, :-1]), dim=1)


def last_where(mark_BL: Tensor) -> Tensor:
    """The last marked position up to each position; the first position must be marked."""
    at_L = torch.arange(mark_BL.shape[1], device=mark_BL.device)
    return torch.where(mark_BL, at_L, 0).cummax(-1).values


def count_since(mark_BL: Tensor, start_BL: Tensor) -> Tensor:
    """Marked positions from the start of each position's block up to and with itself, [B, L]."""
    so_far_BL = mark_BL.long().cumsum(-1)
    return so_far_BL - (so_far_BL - mark_BL.long()).gather(1, start_BL)


def cut_blocks(document_BL: Tensor, learnt_BL: Tensor, size_B: Tensor, offset_B: Tensor) -> Blocks:
    """Blocks of `size_B` over the runs of each row, the first of a run cut to `offset_B` < size (0: whole)."""
    run_BL = changes(document_BL) | changes(learnt_BL)
    at_BL = torch.arange(document_BL.shape[1], device=document_BL.device) - last_where(run_BL)
    begins_BL = run_BL | ((at_BL - offset_B[:, None]) % size_B[:, None] == 0)
    index_BL = begins_BL.long().cumsum(-1) - 1
    counted = torch.zeros_like(index_BL).scatter_add(1, index_BL, torch.ones_like(index_BL))
    return Blocks(index_BL, last_where(begins_BL), counted.gather(1, index_BL))


def rank_in_block(key_BL: Tensor, blocks: Blocks) -> Tensor:
    """Place of each position among those of its block, the largest key first, [B, L]."""
    order = key_BL.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(1, blocks.index_BL.gather(1, order).argsort(dim=-1, stable=True))
    at_L = torch.arange(key_BL.shape[1], device=key_BL.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, at_L) - blocks.start_BL


def corrupt(
    tokens_BL: Tensor, masked_BL: Tensor, learnt_BL: Tensor, weight_BL: Tensor, blocks: Blocks, mask_id: int
) -> Corrupted:
    """Mask the positions that are chosen and learnt, and say how the rows then stand."""
    masked_BL = masked_BL & learnt_BL
    zero = torch.zeros_like(blocks.index_BL)
    count_BL = zero.scatter_add(1, blocks.index_BL, masked_BL.long()).gather(1, blocks.index_BL)
    return Corrupted(
        torch.where(masked_BL, mask_id, tokens_BL),
        masked_BL,
        count_since(masked_BL, blocks.start_BL) == 0,
        count_BL / blocks.size_BL,
        weight_BL,
        blocks.index_BL,
        blocks.start_BL,
        blocks.start_BL + blocks.size_BL,
    )
