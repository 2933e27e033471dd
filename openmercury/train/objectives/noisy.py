"""The noisy half: which positions it reads, which of its rows are asked for a token, and what it finds."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.diffusion.corrupt import Corrupted
from openmercury.model.transformer import Transformer
from openmercury.train.attention import NoisyAttend
from openmercury.train.config import BlockDiffusion
from openmercury.train.objectives.base import Clean


class Chosen(NamedTuple):
    """Flat places [T] of the positions that the noisy half reads, in order, and which of them lie in whole blocks."""

    at_T: Tensor
    whole_T: Tensor


def asked_rows(noisy: Corrupted, learnt_BL: Tensor, *, shift: bool, behind: bool) -> Tensor:
    """Which rows of the noisy half are asked for a token, [B, L]: row i for token i, or i + 1 with `shift`.

    With `behind` the last row of a block is asked for the token behind it, as drafts of `verified` need it.
    """
    if not shift:
        return noisy.masked_BL
    same_BL = noisy.block_BL[:, 1:] == noisy.block_BL[:, :-1]
    inside_BL = same_BL & noisy.masked_BL[:, 1:]
    behind_BL = ~same_BL & learnt_BL[:, 1:] if behind else torch.zeros_like(same_BL)
    return F.pad((inside_BL | behind_BL) & ~noisy.settled_BL[:, :-1], (0, 1))


def choose_blocks(asked_BL: Tensor, block_BL: Tensor, first_BC: Tensor, share: float) -> Chosen:
    """T = `share` of all positions. Blocks with something asked come first, in the random order of `first_BC`.

    The last block may be cut at T.
    """
    rank_BC = first_BC + 2 - 2 * torch.zeros_like(first_BC).scatter_reduce(1, block_BL, asked_BL.to(first_BC), "amax")
    key_BL = rank_BC.gather(1, block_BL).flatten()
    order = key_BL.argsort(stable=True)
    taken = max(1, math.ceil(share * len(order)))
    at_T, rest = order[:taken].sort().values, order[taken : taken + 1]
    return Chosen(at_T, key_BL[at_T] != key_BL[rest] if len(rest) else torch.ones_like(at_T, dtype=torch.bool))


def read_noisy(
    model: Transformer, clean: Clean, noisy: Corrupted, at_T: Tensor, states: list[Tensor] | None = None
) -> Tensor:
    """Hidden states [T, D] of the chosen positions: what is settled on base weights, the rest through the adapter."""
    ids_1T, settled_1T = (field.flatten()[at_T][None] for field in (noisy.ids_BL, noisy.settled_BL))
    position_1T = (at_T % noisy.ids_BL.shape[1])[None]
    hidden: Tensor = model(ids_1T, position_1T, NoisyAttend(clean.attend, noisy, at_T), ~settled_1T, states)
    return hidden[0]


def places(at_T: Tensor, total: int) -> Tensor:
    """Where each flat position stands among the chosen, [total]; 0 for those that are not."""
    return torch.zeros(total, dtype=torch.long, device=at_T.device).scatter(
        0, at_T, torch.arange(len(at_T), device=at_T.device)
    )


class CleanRows(NamedTuple):
    """Flat places [M] of the tokens that the clean half's rows are asked for, and their weights in the bound."""

    token_M: Tensor
    weight_M: Tensor


def clean_rows(config: BlockDiffusion, noisy: Corrupted, learnt_BL: Tensor) -> CleanRows | None:
    """All that is learnt where `ar` counts; else, in the bound with logit shift, what that weighs; else None."""
    bound = config.weights == "bound" and config.shift
    if not config.ar and not bound:
        return None
    weight_BL = clean_weights(noisy, learnt_BL) if bound else 0.0 * learnt_BL
    asked_BL = learnt_BL if config.ar else weight_BL > 0  # no more rows than count meet the vocabulary
    token_M = asked_BL.flatten().nonzero()[:, 0]
    return CleanRows(token_M, weight_BL.flatten()[token_M])


def clean_weights(noisy: Corrupted, learnt_BL: Tensor) -> Tensor:
    """By token: the first of a block counts exactly, and so does the first masked one, which stands behind settled
    text."""
    first_BL = torch.arange(learnt_BL.shape[1], device=learnt_BL.device) == noisy.start_BL
    behind_BL = noisy.masked_BL & F.pad(noisy.settled_BL[:, :-1], (1, 0))
    return torch.where(learnt_BL & (first_BL | behind_BL), noisy.weight_BL, 0.0)
