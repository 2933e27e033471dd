"""Verification: which leading tokens of a draft, or of the settled run of a block, the clean side lets stand.

`verified` keeps the longest prefix that AR decoding would have produced.

With the coupled noise of `sample`, AR decoding is a deterministic function of the text before a position, at any
temperature. A draft is therefore right exactly when it equals the clean side's own choice, and the speculative
sampling rule (arXiv 2211.17192) reduces to counting equal tokens.

`diffusion` is lenient: a settled token stands unless the clean side, which has read all before it, finds its own choice
more than 1/ε times as likely. At ε = 1 that is greedy verification again, at ε = 0 nothing is ever edited. (Accepting
what is plausible rather than equal: typical acceptance, arXiv 2401.10774.)
"""

from __future__ import annotations

import torch
from torch import Tensor

UNUSED = 2**20  # where fewer lengths are possible than asked for: longer than any draft


def accepted_length(draft_RN: Tensor, chosen_RN: Tensor) -> Tensor:
    """How many leading drafts equal the AR choices at their positions, [R]. Pad drafts with −1."""
    return (draft_RN == chosen_RN).long().cumprod(-1).sum(-1)


def likely_lengths(confidence_RN: Tensor, count_R: Tensor, most: int) -> Tensor:
    """The `most` likeliest of the lengths 0 ‥ count at which a draft will be cut off, ascending, [R, most]; padded with
    UNUSED.

    A draft behind right ones is right about as often as it is confident (docs/performance.md): length k < count has
    Π_{j<k} c_j · (1 − c_k), the whole draft Π c_j. Of equals the shorter come first.
    """
    log_RN = confidence_RN.clamp(1e-30, 1.0).log()  # rounding may go above 1
    none = log_RN.new_zeros(len(log_RN), 1)
    before = torch.cat((none, log_RN.cumsum(-1)), dim=1).exp()
    index = torch.arange(before.shape[1], device=count_R.device)
    last = index == count_R[:, None]
    score = before * torch.where(last, 1.0, 1 - torch.cat((log_RN, none), dim=1).exp())
    score = torch.where(index <= count_R[:, None], score, -1.0)
    order = score.argsort(dim=-1, descending=True, stable=True)[:, :most]
    found = torch.where(score.gather(1, order) < 0, UNUSED, order).sort(-1).values
    return torch.nn.functional.pad(found, (0, most - found.shape[1]), value=UNUSED)


def standing_length(odds_RN: Tensor, settled_RN: Tensor, edit_below_R: Tensor) -> Tensor:
    """How many leading settled tokens stand, [R]: those whose odds against the clean choice reach `edit_below`."""
    return (settled_RN & (odds_RN >= edit_below_R[:, None])).long().cumprod(-1).sum(-1)
