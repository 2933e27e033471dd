"""Block diffusion: corrupt a batch, run both halves, compare.

The clean half runs on base weights under no_grad: it gives the noisy half its context, and teacher logits for free.
Row i of the noisy half predicts token i + 1 (logit shift), so it counts where token i + 1 is masked.
"""

from __future__ import annotations

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

    def __call__(
        self, model: Transformer, batch: Batch, generator: torch.Generator, rows: slice, progress: float
    ) -> Loss:
        """See `Objective`."""
        assert model.config.diffusion is not None
        noisy = noise(batch.tokens_BL, self.config, model.config.diffusion.mask_id, generator)
        noisy, batch = Corrupted(*(field[rows] for field in noisy)), Batch(*(field[rows] for field in batch))
        tokens_BL, document_BL = batch.tokens_BL, batch.document_BL
        position_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
        clean = CleanAttend(document_BL)
        with torch.no_grad():
            teacher_BLD = model(tokens_BL, position_BL, clean)
        attend = NoisyAttend(clean, noisy, document_BL)
        student_BLD = model(noisy.ids_BL, position_BL, attend, torch.ones_like(noisy.masked_BL))

        counts_BL = (noisy.masked_BL & batch.loss_mask_BL)[:, 1:] & (document_BL[:, 1:] == document_BL[:, :-1])
        row_M = counts_BL.flatten().nonzero()[:, 0]
        weight_BL = self.config.decay ** (position_BL - noisy.start_BL)[:, :-1].double()
        wide = student_BLD.dtype if student_BLD.dtype == torch.float64 else torch.float32
        weight_M = weight_BL.flatten()[row_M].to(wide)
        found = denoising_loss(
            student_BLD[:, :-1].flatten(0, 1)[row_M],
            teacher_BLD[:, :-1].flatten(0, 1)[row_M],
            model.head.weight,
            tokens_BL[:, 1:].flatten()[row_M],
            weight_M,
            ce=self.config.ce,
            kl=self.config.kl,
            slice_fn=self.slice_fn,
        )
        hit_BL = torch.zeros_like(counts_BL)
        hit_BL.view(-1)[row_M] = found.hit_M
        level = _by_level(noisy.rate_BL[:, :-1].flatten()[row_M], found.ce_M, found.hit_M)
        metrics = {f"ce_level_{number}": level[number, [1, 0]] for number in range(LEVELS)}
        metrics |= {"hit_full": level[-1, [2, 0]], "draft_prefix": _draft_prefix(noisy, counts_BL, hit_BL)}
        return Loss(found.loss, weight_M.sum(), metrics)


def _by_level(rate_M: Tensor, ce_M: Tensor, hit_M: Tensor) -> Tensor:
    """Tokens, cross-entropy and hits by noise level, [LEVELS, 3]."""
    level_M = torch.where(rate_M >= 1, LEVELS - 1, (rate_M * (LEVELS - 1)).long().clamp(max=LEVELS - 2))
    table = torch.zeros(LEVELS, 3, device=rate_M.device, dtype=torch.float64)
    values = torch.stack((torch.ones_like(ce_M), ce_M, hit_M.to(ce_M.dtype)), dim=-1).double()
    return table.index_add(0, level_M, values)


def _draft_prefix(noisy: Corrupted, counts_BL: Tensor, hit_BL: Tensor) -> Tensor:
    """Length of the correct prefix of blocks that were fully masked and are trained on as a whole; their number."""
    full_BL = (noisy.rate_BL >= 1)[:, :-1]
    block_BL = noisy.block_BL[:, :-1]
    shape = (len(block_BL), int(noisy.block_BL.max()) + 1)
    ones = torch.ones_like(block_BL)
    whole = torch.zeros(shape, dtype=torch.long, device=ones.device).scatter_add(1, block_BL, ones)
    counted = torch.zeros_like(whole).scatter_add(1, block_BL, (counts_BL & full_BL).long())
    at_BL = torch.arange(block_BL.shape[1], device=ones.device) - noisy.start_BL[:, :-1]
    miss_BL = torch.where(hit_BL, 1 << 20, at_BL)
    first_miss = torch.full(shape, 1 << 20, device=ones.device).scatter_reduce(1, block_BL, miss_BL, "amin")
    usable = (counted == whole) & (whole > 1)
    length = torch.minimum(first_miss, whole)
    return torch.stack((length[usable].sum(), usable.sum())).double()
