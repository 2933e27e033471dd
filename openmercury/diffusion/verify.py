"""Verification of drafts: keep the longest prefix that AR decoding would have produced.

With the coupled noise of `sample`, AR decoding is a deterministic function of the text before a position, at any
temperature. A draft is therefore right exactly when it equals the clean side's own choice, and the speculative
sampling rule (arXiv 2211.17192) reduces to counting equal tokens.
"""

from __future__ import annotations

from torch import Tensor


def accepted_length(draft_RN: Tensor, chosen_RN: Tensor) -> Tensor:
    """How many leading drafts equal the AR choices at their positions, [R]. Pad drafts with −1."""
    return (draft_RN == chosen_RN).long().cumprod(-1).sum(-1)
