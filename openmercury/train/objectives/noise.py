"""From an `[objective]` table and uniform draws to noisy rows."""

from __future__ import annotations

import torch
from torch import Tensor

from openmercury.diffusion.corrupt import Blocks, Corrupted, corrupt, cut_blocks, rank_in_block
from openmercury.diffusion.schedule import bound_counts, flat_counts
from openmercury.train.config import BlockDiffusion

DRAWS = 4  # uniforms a position: noise level, full mask or first position, rounding, order


def sizes_now(config: BlockDiffusion, progress: float) -> tuple[int, ...]:
    """The block sizes to draw from, after the curriculum."""
    stages, share = config.curriculum.sizes, config.curriculum.share
    if not stages or progress >= share:
        return config.block_sizes
    return (stages[int(progress / share * len(stages))],)


def draw_blocks(sizes: tuple[int, ...], document_BL: Tensor, learnt_BL: Tensor, generator: torch.Generator) -> Blocks:
    """A block size of `sizes` and an offset for each row."""
    rows, device = len(document_BL), generator.device
    drawn_B = torch.randint(len(sizes), (rows,), generator=generator, device=device)
    size_B = torch.zeros_like(drawn_B)
    for number, size in enumerate(sizes):  # a table of sizes would be copied to the device, which waits for it
        size_B = torch.where(drawn_B == number, size, size_B)
    offset_B = (torch.rand(rows, generator=generator, device=device) * size_B).long()
    return cut_blocks(document_BL, learnt_BL, size_B, offset_B)


def draw_uniform(document_BL: Tensor, generator: torch.Generator) -> Tensor:
    """[DRAWS, B, L] in [0, 1)."""
    return torch.rand(DRAWS, *document_BL.shape, generator=generator, device=generator.device)


def flat_masks(config: BlockDiffusion, blocks: Blocks, uniform: Tensor) -> tuple[list[Tensor], Tensor]:
    """Masks of each noisy copy, and the weight of a masked position.

    The first position of a block is masked, since decoding commits what is settled; of complementary ones, of one.
    """
    at_L = torch.arange(blocks.start_BL.shape[1], device=blocks.start_BL.device)
    of_block = torch.stack([draw.gather(1, blocks.start_BL) for draw in uniform[:3]])
    counts = flat_counts(blocks.size_BL, of_block, config.full_mask_share, config.min_rate, config.max_rate)
    # The positions with the largest log w + Gumbel noise are drawn without replacement in proportion to w.
    key_BL = -(-uniform[3].log()).log()
    rate_BL = counts.count_BL / blocks.size_BL
    key_BL = key_BL + config.late * (1 - rate_BL) * (at_L - blocks.start_BL)
    if not config.complementary:
        key_BL = torch.where(at_L == blocks.start_BL, torch.inf, key_BL)
    masked_BL = rank_in_block(key_BL, blocks) < counts.count_BL
    return [masked_BL, ~masked_BL] if config.complementary else [masked_BL], counts.weight_BL


def bound_masks(shift: bool, blocks: Blocks, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Masks and weights of the NELBO.

    With `shift` the first position of a block is predicted by the clean side alone, whatever is masked: its term is
    exact and weighs 1, and it is masked beside the others as `diffusion.bound` says.
    """
    level_BL, first_BL = (draw.gather(1, blocks.start_BL) for draw in uniform[:2])
    if not shift:
        counts = bound_counts(blocks.size_BL, level_BL)
        return rank_in_block(uniform[3], blocks) < counts.count_BL, counts.weight_BL
    is_first = torch.arange(level_BL.shape[1], device=level_BL.device) == blocks.start_BL
    counts = bound_counts(blocks.size_BL - 1, level_BL)
    masked_BL = rank_in_block(torch.where(is_first, -1.0, uniform[3]), blocks) < counts.count_BL
    masked_BL = torch.where(is_first, first_BL * blocks.size_BL < counts.count_BL, masked_BL)
    return masked_BL, torch.where(is_first, 1.0, counts.weight_BL)


def noisy_copies(
    config: BlockDiffusion, tokens_BL: Tensor, learnt_BL: Tensor, blocks: Blocks, uniform: Tensor, mask_id: int
) -> list[Corrupted]:
    """The noisy rows of a batch, twice where masks are complementary."""
    if config.weights == "bound":
        masked, weight_BL = bound_masks(config.shift, blocks, uniform)
        copies = [masked]
    else:
        copies, weight_BL = flat_masks(config, blocks, uniform)
    return [corrupt(tokens_BL, masked_BL, learnt_BL, weight_BL, blocks, mask_id) for masked_BL in copies]
