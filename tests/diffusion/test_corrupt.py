"""Blocks, counts and masks of the forward process."""

from __future__ import annotations

import torch

from openmercury.diffusion.corrupt import corrupt, cut_blocks, rank_in_block
from openmercury.diffusion.schedule import bound_counts, flat_counts
from openmercury.train.config import BlockDiffusion
from openmercury.train.objectives.noise import draw_blocks, draw_uniform, flat_masks, noisy_copies, sizes_now

GENERATOR = torch.Generator().manual_seed(0)


def test_blocks_begin_with_runs_and_lie_on_their_grid() -> None:
    """Two documents, the first one a prompt of three and an answer of seven."""
    document = torch.tensor([[0] * 10 + [1] * 6])
    learnt = torch.tensor([[False] * 3 + [True] * 13])
    blocks = cut_blocks(document, learnt, torch.tensor([4]), torch.tensor([1]))
    assert blocks.index_BL.tolist() == [[0, 1, 1, 2, 3, 3, 3, 3, 4, 4, 5, 6, 6, 6, 6, 7]]
    assert blocks.start_BL.tolist() == [[0, 1, 1, 3, 4, 4, 4, 4, 8, 8, 10, 11, 11, 11, 11, 15]]
    assert blocks.size_BL.tolist() == [[1, 2, 2, 1, 4, 4, 4, 4, 2, 2, 1, 4, 4, 4, 4, 1]]


def test_rank_in_block() -> None:
    blocks = cut_blocks(
        torch.zeros(1, 7, dtype=torch.long), torch.ones(1, 7, dtype=torch.bool), *torch.tensor([[3], [1]])
    )
    key = torch.tensor([[0.5, 0.1, 0.9, 0.3, 0.2, 0.7, 0.8]])
    assert rank_in_block(key, blocks).tolist() == [[0, 2, 0, 1, 2, 1, 0]]


def test_settled_is_what_stands_before_the_first_mask() -> None:
    learnt = torch.tensor([[False, True, True, True, True, True, True]])
    blocks = cut_blocks(torch.zeros(1, 7, dtype=torch.long), learnt, torch.tensor([3]), torch.tensor([0]))
    masked = torch.tensor([[True, False, True, False, False, False, False]])
    noisy = corrupt(torch.arange(7)[None], masked, learnt, torch.ones(1, 7), blocks, 9)
    assert noisy.ids_BL.tolist() == [[0, 1, 9, 3, 4, 5, 6]]  # a prompt is never masked
    assert noisy.settled_BL.tolist() == [[True, True, False, False, True, True, True]]
    assert noisy.level_BL[0, 1:4].tolist() == [float(torch.tensor(1) / 3)] * 3


def test_flat_counts_keep_their_rate() -> None:
    size = torch.full((200, 100), 16)
    counts = flat_counts(size, torch.rand(3, 200, 100, generator=GENERATOR), 0.5, 0.2, 0.6).count_BL
    assert abs(float((counts == 16).double().mean()) - 0.5) < 0.02
    part = counts[counts < 16].double()
    assert abs(float(part.mean()) - 0.4 * 16) < 0.1
    assert part.min() >= 3
    assert part.max() <= 10


def test_bound_counts_are_uniform() -> None:
    counts = bound_counts(torch.full((100, 100), 4), torch.rand(100, 100, generator=GENERATOR))
    share = torch.bincount(counts.count_BL.flatten(), minlength=5) / 10_000
    torch.testing.assert_close(share, torch.tensor([0, 0.25, 0.25, 0.25, 0.25]), atol=0.02, rtol=0)
    torch.testing.assert_close(counts.weight_BL, 4 / counts.count_BL.double())


def test_complementary_copies_mask_each_token_once() -> None:
    config = BlockDiffusion(block_sizes=(4, 7), complementary=True)
    document = torch.zeros(3, 50, dtype=torch.long)
    learnt = torch.arange(50).expand(3, 50) >= torch.tensor([[1], [20], [45]])
    blocks = draw_blocks(config.block_sizes, document, learnt, GENERATOR)
    tokens = torch.randint(0, 60, (3, 50), generator=GENERATOR)
    first, second = noisy_copies(config, tokens, learnt, blocks, draw_uniform(document, GENERATOR), 63)
    assert torch.equal(first.masked_BL ^ second.masked_BL, learnt)
    assert not (first.masked_BL & second.masked_BL).any()
    assert first.masked_BL.any()
    assert second.masked_BL.any()


def test_first_position_is_masked_and_later_ones_more_often() -> None:
    document, size = torch.zeros(400, 64, dtype=torch.long), 8
    blocks = cut_blocks(document, document == 0, torch.full((400,), size), torch.zeros(400, dtype=torch.long))
    shares = {}
    for late in (0.0, 1.0):
        config = BlockDiffusion(full_mask_share=0.0, min_rate=0.4, max_rate=0.6, late=late)
        (masked,), _ = flat_masks(config, blocks, draw_uniform(document, GENERATOR))
        shares[late] = masked.view(-1, size).double().mean(0)
        assert shares[late][0] == 1
        assert abs(float(masked.double().mean()) - 0.5) < 0.01
    assert shares[0.0][1:].max() - shares[0.0][1:].min() < 0.05
    assert (shares[1.0][1:].diff() > 0).all()
    assert shares[1.0][7] > shares[1.0][1] + 0.3


def test_curriculum() -> None:
    config = BlockDiffusion.model_validate({"block_sizes": (8, 16), "curriculum": {"sizes": (1, 4, 8), "share": 0.6}})
    stages = [sizes_now(config, progress) for progress in (0.0, 0.19, 0.21, 0.5, 0.6, 0.99)]
    assert stages == [(1,), (1,), (4,), (8,), (8, 16), (8, 16)]
    assert sizes_now(BlockDiffusion(), 0.0) == (8, 16)
