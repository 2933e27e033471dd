"""Next-token prediction on packed rows, each document by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from openmercury.data.loader import Batch
from openmercury.diffusion.loss import SliceLoss, Terms, denoising_loss, slice_loss
from openmercury.model.transformer import Transformer
from openmercury.train.objectives.base import Loss, learnt_tokens, mask_of, ratio, read_clean, wide_dtype


@dataclass(frozen=True)
class ARObjective:
    """−log p(x_i | x_<i), in nats per trained token."""

    slice_fn: SliceLoss = slice_loss

    def __call__(
        self, model: Transformer, batch: Batch, generator: torch.Generator, rows: slice, progress: float
    ) -> Loss:
        """See `Objective`."""
        batch = Batch(*(field[rows] for field in batch))
        # Waits for the device: before it has the forward to do.
        token_M = learnt_tokens(batch).flatten().nonzero()[:, 0]
        hidden_MD = read_clean(model, batch, gradient=True).hidden_BLD.flatten(0, 1)
        weight_M = torch.ones(len(token_M), dtype=wide_dtype(hidden_MD), device=hidden_MD.device)
        found = denoising_loss(
            hidden_MD[token_M - 1],
            model.head.weight,
            batch.tokens_BL.flatten()[token_M],
            weight_M,
            Terms(),
            mask_id=mask_of(model),
            slice_fn=self.slice_fn,
        )
        return Loss(found.loss, weight_M.sum(), {"hit": ratio(found.hit_M.sum(), len(token_M), weight_M)})
