"""Block diffusion: corrupt a batch, run both halves, compare.

The clean half is causal and runs on base weights: it gives the noisy half its context, and where the base is frozen its
logits are the teacher's. With logit shift row i of the noisy half predicts token i + 1, else token i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import Blocks, Corrupted, count_since
from openmercury.diffusion.loss import DenoisingLoss, SliceLoss, Terms, denoising_loss, slice_loss
from openmercury.model.transformer import Transformer
from openmercury.train.config import BlockDiffusion
from openmercury.train.objectives.base import Clean, Loss, learnt_tokens, mask_of, ratio, read_clean, wide_dtype
from openmercury.train.objectives.measure import by_level, draft_prefix
from openmercury.train.objectives.noise import draw_blocks, draw_uniform, noisy_copies, sizes_now
from openmercury.train.objectives.noisy import (
    Chosen,
    CleanRows,
    asked_rows,
    choose_blocks,
    clean_rows,
    read_noisy,
)
from openmercury.train.objectives.rollout import own_states, teach


class Asked(NamedTuple):
    """What is asked of a noisy copy: the chosen positions, which of their rows [M], the flat places of these, and how
    many others are asked but lie outside what was chosen."""

    chosen: Chosen
    row_M: Tensor
    at_M: Tensor
    left_out: Tensor

    @classmethod
    def of(cls, asked_BL: Tensor, chosen: Chosen) -> Asked:
        """Waits for the device, which says how many rows there are."""
        counts_T = asked_BL.flatten()[chosen.at_T] & chosen.whole_T
        row_M = counts_T.nonzero()[:, 0]
        return cls(chosen, row_M, chosen.at_T[row_M], asked_BL.sum() - counts_T.sum())


class Part(NamedTuple):
    """One noisy copy: what it was asked, its rows' loss and weights, Σ weight · alignment."""

    asked: Asked
    found: DenoisingLoss
    weight_M: Tensor
    aligned: Tensor


@dataclass(frozen=True)
class BlockDiffusionObjective:
    """Blocks behind clean text. `teacher` is the base as the run found it, where the base itself learns (`learns`)."""

    config: BlockDiffusion
    learns: bool = False
    teacher: Transformer | None = None
    slice_fn: SliceLoss = slice_loss

    def __call__(
        self, model: Transformer, batch: Batch, generator: torch.Generator, rows: slice, progress: float
    ) -> Loss:
        """See `Objective`."""
        assert model.config.diffusion is not None
        config, mask_id = self.config, model.config.diffusion.mask_id
        learnt_BL = learnt_tokens(batch)
        blocks = draw_blocks(sizes_now(config, progress), batch.document_BL, learnt_BL, generator)
        uniform = draw_uniform(batch.document_BL, generator)
        copies = noisy_copies(config, batch.tokens_BL, learnt_BL, blocks, uniform, mask_id)
        first_BC = torch.rand(learnt_BL.shape, generator=generator, device=generator.device)
        tied_BL = torch.zeros_like(learnt_BL)  # rows that know the token before theirs
        if model.chain is not None:
            tied_BL = torch.rand(learnt_BL.shape, generator=generator, device=generator.device) < config.chained
        forwards = self._own_forwards(generator)
        if forwards:  # own states come after other tokens than the text's
            tied_BL = torch.zeros_like(tied_BL)
        copies = [Corrupted(*(field[rows] for field in copy)) for copy in copies]
        batch, blocks = Batch(*(field[rows] for field in batch)), Blocks(*(field[rows] for field in blocks))
        learnt_BL, first_BC, tied_BL = learnt_BL[rows], first_BC[rows], tied_BL[rows]

        def rows_of(noisy: Corrupted) -> Tensor:
            return asked_rows(noisy, learnt_BL, shift=config.shift, behind=config.weights == "flat")

        # Whoever counts rows waits for the device: before it is given the forwards, not between them.
        exact = clean_rows(config, copies[0], learnt_BL)
        wanted = [learnt_BL if forwards else rows_of(noisy) for noisy in copies]
        chosen = [choose_blocks(each, blocks.index_BL, first_BC, config.noisy_share) for each in wanted]
        asked = [] if forwards else [Asked.of(*pair) for pair in zip(wanted, chosen, strict=True)]
        clean = read_clean(model, batch, gradient=self.learns, states=bool(config.align) and not self.learns)
        teacher = clean
        if self.teacher is not None:
            teacher = read_clean(self.teacher, batch, gradient=False, states=bool(config.align))
        if forwards:
            copies = [own_states(model, config, clean, batch, learnt_BL, blocks, each, forwards) for each in chosen]
            asked = [Asked.of(rows_of(noisy), each) for noisy, each in zip(copies, chosen, strict=True)]
        parts = [
            self._denoise(model, batch, clean, teacher, noisy, each, tied_BL, own=forwards > 0)
            for noisy, each in zip(copies, asked, strict=True)
        ]
        return self._sum(model, batch, clean, learnt_BL, copies, parts, exact, own_text=forwards > 0)

    def _own_forwards(self, generator: torch.Generator) -> int:
        """Denoising steps of own decoding that this training step begins with; mostly 0."""
        policy = self.config.on_policy
        if not policy.share:
            return 0
        draw, count = torch.rand(2, generator=generator, device=generator.device).tolist()
        return 1 + int(count * policy.forwards) if draw < policy.share else 0

    def _denoise(
        self,
        model: Transformer,
        batch: Batch,
        clean: Clean,
        teacher: Clean,
        noisy: Corrupted,
        asked: Asked,
        tied_BL: Tensor,
        *,
        own: bool,
    ) -> Part:
        """Run the noisy half on one copy and compare. Rows that are tied know the token before theirs."""
        config = self.config
        states: list[Tensor] | None = [] if config.align and not own else None
        chosen, row_M, at_M, _ = asked
        student_TD = read_noisy(model, clean, noisy, chosen.at_T, states)
        token_M = at_M + int(config.shift)
        weight_M = self._weights(noisy, at_M, token_M).to(wide_dtype(student_TD))
        target_M, taught_MD = batch.tokens_BL.flatten()[token_M], teacher.hidden_BLD.flatten(0, 1)[token_M - 1]
        if own:
            taught_MD, target_M = teach(
                self.teacher or model, config, teacher, noisy, student_TD.detach(), chosen, token_M, model.head.weight
            )
        student_MD = student_TD[row_M]
        if model.chain is not None and config.chained:
            told_MD = model.chain(student_MD, model.embedding(batch.tokens_BL.flatten()[token_M - 1]))
            student_MD = torch.where(tied_BL.flatten()[at_M][:, None], told_MD, student_MD)
        found = denoising_loss(
            student_MD,
            model.head.weight,
            target_M,
            weight_M,
            Terms(config.ce, config.kl, config.certainty),
            teacher=(taught_MD, (self.teacher or model).head.weight.detach()) if config.kl else None,
            mask_id=mask_of(model),
            slice_fn=self.slice_fn,
        )
        aligned = torch.zeros((), dtype=weight_M.dtype, device=weight_M.device)
        for found_1TD, other in zip(states or (), teacher.states, strict=False):
            pair = found_1TD[0][row_M].to(weight_M.dtype), other.flatten(0, 1)[token_M - 1].to(weight_M.dtype)
            aligned = aligned + (weight_M * (1 - F.cosine_similarity(*pair, dim=-1))).sum() / len(teacher.states)
        return Part(asked, found, weight_M, aligned)

    def _weights(self, noisy: Corrupted, at_M: Tensor, token_M: Tensor) -> Tensor:
        if self.config.weights == "bound":
            return noisy.weight_BL.flatten()[token_M].double()
        place_BL = count_since(~noisy.settled_BL, noisy.start_BL) - 1
        return self.config.decay ** place_BL.flatten()[at_M].double()

    def _sum(
        self,
        model: Transformer,
        batch: Batch,
        clean: Clean,
        learnt_BL: Tensor,
        copies: list[Corrupted],
        parts: list[Part],
        exact: CleanRows | None,
        *,
        own_text: bool,
    ) -> Loss:
        config, bound = self.config, self.config.weights == "bound"
        total = torch.stack([part.found.loss + config.align * part.aligned for part in parts]).sum()
        weight = torch.stack([part.weight_M.sum() for part in parts]).sum()
        nll = torch.stack([(part.weight_M * part.found.ce_M).sum() for part in parts]).sum()
        metrics = self._measure(copies, parts, own_text=own_text)
        if bound:
            weight = learnt_BL.sum().to(weight.dtype)
        if exact is not None:
            found, exact_M = self._clean_side(model, batch, clean, exact)
            total, nll = total + found.loss, nll + (exact_M * found.ce_M).sum()
            weight = weight + config.ar * len(exact_M)
            if config.ar:
                metrics["ar"] = ratio(found.ce_M.sum(), len(exact_M), weight)
        if bound:
            metrics["bound"] = ratio(nll, learnt_BL.sum(), weight)
        return Loss(total, weight, metrics)

    def _clean_side(
        self, model: Transformer, batch: Batch, clean: Clean, exact: CleanRows
    ) -> tuple[DenoisingLoss, Tensor]:
        """Its next-token loss, weighted as the bound asks (also returned, by row) and by `ar`."""
        token_M = exact.token_M
        hidden_MD = clean.hidden_BLD.flatten(0, 1)[token_M - 1]
        exact_M = exact.weight_M.to(wide_dtype(hidden_MD))
        found = denoising_loss(
            hidden_MD,
            model.head.weight,
            batch.tokens_BL.flatten()[token_M],
            self.config.ce * exact_M + self.config.ar,
            Terms(),
            mask_id=mask_of(model),
            slice_fn=self.slice_fn,
        )
        return found, exact_M

    def _measure(self, copies: list[Corrupted], parts: list[Part], *, own_text: bool) -> dict[str, Tensor]:
        """Metrics of the noisy copies; those of data's states are empty where states are the model's own."""
        level_M = [copy.level_BL.flatten()[part.asked.at_M] for copy, part in zip(copies, parts, strict=True)]
        ce_M, hit_M = [part.found.ce_M for part in parts], [part.found.hit_M for part in parts]
        found = by_level(*(torch.cat(each) for each in (level_M, ce_M, hit_M)))
        prefixes = [
            draft_prefix(copy, part.asked.at_M, part.found.hit_M) for copy, part in zip(copies, parts, strict=True)
        ]
        found["draft_prefix"] = torch.stack(prefixes).sum(0)
        if self.config.on_policy.share:
            hits = ratio(torch.cat(hit_M).sum(), sum(map(len, hit_M)), found["hit_full"])
            found = {name: pair * (not own_text) for name, pair in found.items()} | {"own_hit": hits * own_text}
        lost = torch.stack([part.asked.left_out for part in parts]).sum()
        asked = lost + sum(len(part.asked.at_M) for part in parts)
        return {**found, "left_out": ratio(lost, asked, found["hit_full"])}
