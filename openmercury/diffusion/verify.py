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

from torch import Tensor


def accepted_length(draft_RN: Tensor, chosen_RN: Tensor) -> Tensor:
    """How many leading drafts equal the AR choices at their positions, [R]. Pad drafts with −1."""
    return (draft_RN == chosen_RN).long().cumprod(-1).sum(-1)


def standing_length(odds_RN: Tensor, settled_RN: Tensor, edit_below_R: Tensor) -> Tensor:
    """How many leading settled tokens stand, [R]: those whose odds against the clean choice reach `edit_below`."""
    return (settled_RN & (odds_RN >= edit_below_R[:, None])).long().cumprod(-1).sum(-1)
