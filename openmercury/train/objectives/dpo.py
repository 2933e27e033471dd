"""Direct preference optimisation (arXiv 2305.18290) with the denoising bound in place of the likelihood.

    B(y | x) = − Σ weight · (−log p(token))            the bound of `diffusion.bound` on one draw of noise, blocks from
                                                       the answer's beginning; its mean over `samples` draws is used
    m = (B(y⁺) − B⁰(y⁺)) − (B(y⁻) − B⁰(y⁻))            0: the model the run started from, frozen
    loss = −log σ(β m)                                 a pair

Policy and reference read the same noisy rows, and a rejected answer is masked as the chosen one is, position by
position as far as both go: what noise does to a likelihood then mostly cancels in m (shared noise: LLaDA 1.5, arXiv
2505.19223). The documents 2k and 2k + 1 of a row are the chosen and the rejected text of one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import Blocks, Corrupted, corrupt
from openmercury.diffusion.loss import SliceLoss, Terms, denoising_loss, slice_loss
from openmercury.model.transformer import Transformer
from openmercury.train.config import DPO
from openmercury.train.objectives.base import Clean, Loss, learnt_tokens, mask_of, ratio, read_clean, wide_dtype
from openmercury.train.objectives.noise import bound_masks, draw_blocks, draw_uniform
from openmercury.train.objectives.noisy import asked_rows, clean_weights, read_noisy


class Scored(NamedTuple):
    """Rows of the policy: hidden states [M, D], their tokens' flat places and weights, and −log p under both models."""

    hidden_MD: Tensor
    token_M: Tensor
    weight_M: Tensor
    ce_M: Tensor
    reference_M: Tensor


@dataclass(frozen=True)
class DPOObjective:
    """Loss per pair. `learns`: the base is trained, so that its own side's terms do not cancel."""

    config: DPO
    reference: Transformer
    learns: bool = False
    slice_fn: SliceLoss = slice_loss

    def __call__(
        self, model: Transformer, batch: Batch, generator: torch.Generator, rows: slice, progress: float
    ) -> Loss:
        """See `Objective`."""
        assert model.config.diffusion is not None
        mask_id, learnt_BL = model.config.diffusion.mask_id, learnt_tokens(batch)
        blocks = draw_blocks(self.config.block_sizes, batch.document_BL, learnt_BL, generator)
        uniform = [draw_uniform(batch.document_BL, generator) for _ in range(self.config.samples)]
        batch, blocks = Batch(*(field[rows] for field in batch)), Blocks(*(field[rows] for field in blocks))
        learnt_BL, partner_BL = learnt_BL[rows], partners(batch.document_BL, learnt_BL[rows])
        clean = read_clean(model, batch, gradient=self.learns)
        reference = read_clean(self.reference, batch, gradient=False) if self.learns else clean
        scored = []
        for draw in uniform:
            shared = draw[:, rows].gather(2, partner_BL.expand(len(draw), -1, -1))
            masked_BL, weight_BL = bound_masks(self.config.shift, blocks, shared)
            noisy = corrupt(batch.tokens_BL, masked_BL, learnt_BL, weight_BL, blocks, mask_id)
            scored.append(self._noisy(model, batch, clean, reference, noisy, learnt_BL))
            if self.learns and self.config.shift:
                scored.append(self._clean(model, batch, clean, reference, clean_weights(noisy, learnt_BL)))
        return self._prefer(model, batch, learnt_BL, scored)

    def _noisy(
        self, model: Transformer, batch: Batch, clean: Clean, reference: Clean, noisy: Corrupted, learnt_BL: Tensor
    ) -> Scored:
        """The terms of the noisy half."""
        at_T = torch.arange(learnt_BL.numel(), device=learnt_BL.device)
        asked_BL = asked_rows(noisy, learnt_BL, shift=self.config.shift, behind=False)
        row_M = asked_BL.flatten().nonzero()[:, 0]
        token_M = row_M + int(self.config.shift)
        hidden_MD = read_noisy(model, clean, noisy, at_T)[row_M]
        with torch.no_grad():
            other_MD = read_noisy(self.reference, reference, noisy, at_T)[row_M]
        return self._score(model, batch, hidden_MD, other_MD, token_M, noisy.weight_BL.flatten()[token_M])

    def _clean(self, model: Transformer, batch: Batch, clean: Clean, reference: Clean, weight_BL: Tensor) -> Scored:
        """The terms of the clean side."""
        token_M = weight_BL.flatten().nonzero()[:, 0]
        own_MD, other_MD = (side.hidden_BLD.flatten(0, 1)[token_M - 1] for side in (clean, reference))
        return self._score(model, batch, own_MD, other_MD, token_M, weight_BL.flatten()[token_M])

    def _score(
        self, model: Transformer, batch: Batch, own_MD: Tensor, other_MD: Tensor, token_M: Tensor, weight_M: Tensor
    ) -> Scored:
        weight_M, target_M = weight_M.to(wide_dtype(own_MD)), batch.tokens_BL.flatten()[token_M]
        with torch.no_grad():
            ce_M, reference_M = (
                self._loss(which, hidden_MD, target_M, weight_M)[1]
                for which, hidden_MD in ((model, own_MD.detach()), (self.reference, other_MD))
            )
        return Scored(own_MD, token_M, weight_M, ce_M, reference_M)

    def _loss(self, model: Transformer, hidden_MD: Tensor, target_M: Tensor, weight_M: Tensor) -> tuple[Tensor, Tensor]:
        found = denoising_loss(
            hidden_MD,
            model.head.weight,
            target_M,
            weight_M,
            Terms(),
            mask_id=mask_of(model),
            slice_fn=self.slice_fn,
        )
        return found.loss, found.ce_M

    def _prefer(self, model: Transformer, batch: Batch, learnt_BL: Tensor, scored: list[Scored]) -> Loss:
        rows, length = learnt_BL.shape
        table_BL = torch.arange(rows, device=learnt_BL.device)[:, None] * length + batch.document_BL.clamp(min=0)
        document = table_BL.flatten()  # the place of each position's document in a table [B · L]
        wide = scored[0].weight_M.dtype
        gain = torch.zeros(rows * length, dtype=wide, device=learnt_BL.device)
        for one in scored:
            better_M = one.weight_M * (one.reference_M - one.ce_M) / self.config.samples
            gain = gain.index_add(0, document[one.token_M], better_M)
        tokens = torch.zeros_like(gain).index_add(0, document, learnt_BL.flatten().to(wide))
        chosen, rejected = _sides(gain, rows, length)
        pair = torch.stack(_sides(tokens, rows, length)).amin(0) > 0
        margin = self.config.beta * (chosen - rejected)
        value = (F.softplus(-margin) * pair).sum()
        # ∂loss/∂B is −β σ(−β m) for a chosen answer and its opposite for a rejected one.
        slope = self.config.beta * torch.sigmoid(-margin) * pair / self.config.samples
        slopes = torch.zeros_like(gain).view(rows, length)
        slopes[:, 0 : 2 * slope.shape[1] : 2], slopes[:, 1 : 2 * slope.shape[1] : 2] = slope, -slope
        total = value
        for one in scored:
            weight_M = one.weight_M * slopes.flatten()[document[one.token_M]]
            found, _ = self._loss(model, one.hidden_MD, batch.tokens_BL.flatten()[one.token_M], weight_M)
            total = total + (found - found.detach())
        count = pair.sum()
        metrics = {
            "preferred": ratio(((margin > 0) & pair).sum(), count, gain),
            "margin": ratio((margin * pair).sum(), count, gain),
            "chosen": ratio((chosen * pair).sum(), count, gain),
            "rejected": ratio((rejected * pair).sum(), count, gain),
        }
        return Loss(total, count.to(wide), metrics)


def _sides(table: Tensor, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Of the documents of each row the even and the odd ones, [B, L // 2]."""
    pairs = table.view(rows, length)[:, : length // 2 * 2].unflatten(1, (-1, 2))
    return pairs[..., 0], pairs[..., 1]


def partners(document_BL: Tensor, learnt_BL: Tensor) -> Tensor:
    """Whose noise each position takes, [B, L]: its own, or where it is of a rejected text, that of the chosen text's
    position as far from where the answer begins."""
    rows, length = document_BL.shape
    at_BL = torch.arange(length, device=document_BL.device).expand(rows, length)
    number_BL = document_BL.clamp(min=0)
    answer = torch.full_like(at_BL, length).scatter_reduce(1, number_BL, torch.where(learnt_BL, at_BL, length), "amin")
    other_BL = answer.gather(1, (number_BL - 1).clamp(min=0)) - answer.gather(1, number_BL) + at_BL
    return torch.where(document_BL % 2 == 1, other_BL % length, at_BL)
