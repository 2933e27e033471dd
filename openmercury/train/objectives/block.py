"""Block diffusion: corrupt a batch, run both halves, compare.

The clean half runs on base weights under no_grad: it gives the noisy half its context, and teacher logits for free.
Row i of the noisy half predicts token i + 1 (logit shift), so it counts where token i + 1 is masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import Corrupted, corrupt
from openmercury.diffusion.loss import SliceLoss, denoising_loss, slice_loss
from openmercury.diffusion.schedule import block_rates
from openmercury.model.transformer import Transformer
from openmercury.train.attention import CleanAttend, NoisyAttend
from openmercury.train.config import BlockDiffusion
from openmercury.train.objectives.base import Loss

LEVELS = 4  # metric buckets of the noise level; the last holds fully masked blocks


def _block_sizes(objective: BlockDiffusion, rows: int, generator: torch.Generator) -> Tensor:
    sizes = torch.tensor(objective.block_sizes, device=generator.device)
    return sizes[torch.randint(len(sizes), (rows,), generator=generator, device=generator.device)]


def noise(tokens_BL: Tensor, objective: BlockDiffusion, mask_id: int, generator: torch.Generator) -> Corrupted:
    """Draw block sizes, offsets and noise levels, and corrupt."""
    rows, length = tokens_BL.shape
    size_B = _block_sizes(objective, rows, generator)
    offset_B = (torch.rand(rows, generator=generator, device=generator.device) * size_B).long()
    blocks = length // min(objective.block_sizes) + 2
    rate_BC = block_rates(rows, blocks, objective.full_mask_share, objective.min_rate, generator)
    return corrupt(tokens_BL, size_B, offset_B, rate_BC, mask_id, generator)


@dataclass(frozen=True)
class BlockDiffusionObjective:
    """Blocks behind clean text, denoised by the gated adapter: gradients reach the adapter only."""

    config: BlockDiffusion
    slice_fn: SliceLoss = slice_loss

    def __call__(self, model: Transformer, batch: Batch, generator: torch.Generator, rows: slice = slice(None)) -> Loss:
        """See `Objective`."""
        assert model.config.diffusion is not None
        noisy = noise(batch.tokens_BL, self.config, model.config.diffusion.mask_id, generator)
        first_BC = torch.rand(noisy.ids_BL.shape, generator=generator, device=generator.device)
        noisy, batch = Corrupted(*(field[rows] for field in noisy)), Batch(*(field[rows] for field in batch))
        tokens_BL, document_BL = batch.tokens_BL, batch.document_BL
        position_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
        clean = CleanAttend(document_BL)
        with torch.no_grad():
            teacher_BLD = model(tokens_BL, position_BL, clean)
        asked_BL = torch.zeros_like(batch.loss_mask_BL)
        asked_BL[:, :-1] = (noisy.masked_BL & batch.loss_mask_BL)[:, 1:] & (document_BL[:, 1:] == document_BL[:, :-1])
        at_T, whole_T = choose_blocks(asked_BL, noisy.block_BL, first_BC[rows], self.config.noisy_share)
        student_TD = model(
            noisy.ids_BL.flatten()[at_T][None],
            position_BL.flatten()[at_T][None],
            NoisyAttend(clean, noisy, at_T),
            torch.ones_like(whole_T)[None],
        )[0]

        counts_T = asked_BL.flatten()[at_T] & whole_T
        row_M = counts_T.nonzero()[:, 0]
        at_M = at_T[row_M]
        wide = student_TD.dtype if student_TD.dtype == torch.float64 else torch.float32
        weight_M = (self.config.decay ** (position_BL - noisy.start_BL).flatten()[at_M].double()).to(wide)
        found = denoising_loss(
            student_TD[row_M],
            teacher_BLD.flatten(0, 1)[at_M],
            model.head.weight,
            tokens_BL.flatten()[at_M + 1],
            weight_M,
            ce=self.config.ce,
            kl=self.config.kl,
            slice_fn=self.slice_fn,
        )
        counts_BL, hit_BL = torch.zeros_like(asked_BL), torch.zeros_like(asked_BL)
        counts_BL.view(-1)[at_M], hit_BL.view(-1)[at_M] = True, found.hit_M
        level = _by_level(noisy.rate_BL.flatten()[at_M], found.ce_M, found.hit_M)
        metrics = {f"ce_level_{number}": level[number, [1, 0]] for number in range(LEVELS)}
        metrics |= {"hit_full": level[-1, [2, 0]], "draft_prefix": _draft_prefix(noisy, counts_BL, hit_BL)}
        metrics["left_out"] = torch.stack((asked_BL.sum() - counts_T.sum(), asked_BL.sum())).double()
        return Loss(found.loss, weight_M.sum(), metrics)


def choose_blocks(asked_BL: Tensor, block_BL: Tensor, first_BC: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Flat places [T] of the positions that the noisy half reads, T = `share` of all, and which lie in whole blocks.

    Blocks with something asked come first, in the random order of `first_BC`; the last block may be cut at T.
    """
    rank_BC = first_BC + 2 - 2 * torch.zeros_like(first_BC).scatter_reduce(1, block_BL, asked_BL.to(first_BC), "amax")
    key_BL = rank_BC.gather(1, block_BL).flatten()
    order = key_BL.argsort(stable=True)
    taken = max(1, math.ceil(share * len(order)))
    at_T, rest = order[:taken], order[taken : taken + 1]
    return at_T, key_BL[at_T] != key_BL[rest] if len(rest) else torch.ones_like(at_T, dtype=torch.bool)


def _by_level(rate_M: Tensor, ce_M: Tensor, hit_M: Tensor) -> Tensor:
    """Tokens, cross-entropy and hits by noise level, [LEVELS, 3]."""
    level_M = torch.where(rate_M >= 1, LEVELS - 1, (rate_M * (LEVELS - 1)).long().clamp(max=LEVELS - 2))
    table = torch.zeros(LEVELS, 3, device=rate_M.device, dtype=torch.float64)
    values = torch.stack((torch.ones_like(ce_M), ce_M, hit_M.to(ce_M.dtype)), dim=-1).double()
    return table.index_add(0, level_M, values)


def _draft_prefix(noisy: Corrupted, counts_BL: Tensor, hit_BL: Tensor) -> Tensor:
    """Length of the correct prefix of blocks that were fully masked and are trained on as a whole; their number."""
    full_BL = noisy.rate_BL >= 1
    block_BL = noisy.block_BL
    shape = (len(block_BL), int(noisy.block_BL.max()) + 1)
    ones = torch.ones_like(block_BL)
    whole = torch.zeros(shape, dtype=torch.long, device=ones.device).scatter_add(1, block_BL, ones)
    counted = torch.zeros_like(whole).scatter_add(1, block_BL, (counts_BL & full_BL).long())
    at_BL = torch.arange(block_BL.shape[1], device=ones.device) - noisy.start_BL
    miss_BL = torch.where(hit_BL, 1 << 20, at_BL)
    first_miss = torch.full(shape, 1 << 20, device=ones.device).scatter_reduce(1, block_BL, miss_BL, "amin")
    usable = (counted == whole) & (whole > 1)
    length = torch.minimum(first_miss, whole)
    return torch.stack((length[usable].sum(), usable.sum())).double()
