"""Masked diffusion: one noise level for each document, everything in sight of everything, no clean half.

t is uniform in (low, 1); a learnt token is masked with probability t, and its −log p then weighs 1/t: as low → 0,
the NELBO (MDLM: arXiv 2406.07524; LLaDA: 2502.09992). Prompts are never masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import Corrupted, corrupt, cut_blocks
from openmercury.diffusion.loss import SliceLoss, Terms, denoising_loss, slice_loss
from openmercury.model.transformer import Transformer
from openmercury.train.attention import DocumentAttend
from openmercury.train.config import MaskedDiffusion
from openmercury.train.objectives.base import Loss, learnt_tokens, positions, ratio, wide_dtype
from openmercury.train.objectives.measure import by_level


@dataclass(frozen=True)
class MaskedDiffusionObjective:
    """Row i is asked for token i, or with `shift` for token i + 1, where that token is masked."""

    config: MaskedDiffusion
    slice_fn: SliceLoss = slice_loss

    def __call__(
        self, model: Transformer, batch: Batch, generator: torch.Generator, rows: slice, progress: float
    ) -> Loss:
        """See `Objective`."""
        assert model.config.diffusion is not None
        mask_id, shift = model.config.diffusion.mask_id, int(self.config.shift)
        noisy = self.noise(batch, mask_id, generator)
        noisy, batch = Corrupted(*(field[rows] for field in noisy)), Batch(*(field[rows] for field in batch))
        token_M = noisy.masked_BL.flatten().nonzero()[:, 0]  # waits for the device: before it has the forward to do
        attend = DocumentAttend(batch.document_BL)
        hidden_BLD = model(noisy.ids_BL, positions(batch), attend, torch.ones_like(noisy.masked_BL))
        weight_M = noisy.weight_BL.flatten()[token_M].to(wide_dtype(hidden_BLD))
        found = denoising_loss(
            hidden_BLD.flatten(0, 1)[token_M - shift],
            model.head.weight,
            batch.tokens_BL.flatten()[token_M],
            weight_M,
            Terms(),
            mask_id=mask_id,
            slice_fn=self.slice_fn,
        )
        tokens = learnt_tokens(batch).sum()
        metrics = by_level(1 / noisy.weight_BL.flatten()[token_M], found.ce_M, found.hit_M)
        metrics["bound"] = ratio((weight_M * found.ce_M).sum(), tokens, weight_M)
        return Loss(found.loss, tokens.to(weight_M.dtype), metrics)

    def noise(self, batch: Batch, mask_id: int, generator: torch.Generator) -> Corrupted:
        """Noisy rows, one level for each document."""
        learnt_BL, low = learnt_tokens(batch), self.config.min_rate
        whole_B = torch.full((len(learnt_BL),), learnt_BL.shape[1], device=learnt_BL.device)
        level_BL, draw_BL = torch.rand(2, *learnt_BL.shape, generator=generator, device=generator.device)
        # The level is drawn at the document's first position, so that all its answers share it.
        document_BL = cut_blocks(batch.document_BL, torch.zeros_like(learnt_BL), whole_B, 0 * whole_B).start_BL
        rate_BL = low + (1 - low) * level_BL.gather(1, document_BL)
        blocks = cut_blocks(batch.document_BL, learnt_BL, whole_B, 0 * whole_B)
        return corrupt(batch.tokens_BL, draw_BL < rate_BL, learnt_BL, 1 / rate_BL, blocks, mask_id)
