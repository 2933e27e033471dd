"""Decoding under a grammar: what may be chosen behind a text whose next tokens are guessed already.

Before each forward of a constrained row the host knows its committed text and what stands behind it: the drafts of
`verified`, the settled run of a block of `diffusion`. The constraint reads those from left to right:

    committed text   d0 d1 d2 | d3 …        d3 is not allowed: it and all behind it go
    mask behind      0  1  2  3             the choices of the clean columns 0 ‥ 3 are made under these

Drafts that stay are allowed, and the clean side chooses allowed tokens only: so what a forward commits begins a text of
the grammar. Noisy groups draft freely, for nothing of theirs is committed before the constraint has read it. What `ar`
and `verified` write is the argmax (or the sample) of the masked logits, token by token; drafts only change how many
forwards that takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.int32]  # token v is bit v mod 32 of word v ÷ 32; 1: it may be chosen
ANY = -1  # a word of 32 tokens that may all be chosen


class Constraint(Protocol):
    """What the text of one request may become. Once that is submitted, only the engine's thread calls it."""

    @property
    def finished(self) -> bool:
        """Is the committed text whole, and nothing may follow but its end?"""

    def allowed(self, drafted: Sequence[int], out: Words) -> list[int]:
        """Which tokens may come next, [at most n + 1 rows] of `out`, with n < len(out) tokens that may stand there.

        Returns the longest beginning of `drafted` that is allowed, or that with tokens in it, or behind it, that the
        grammar leaves no other way than to write. Row j of `out` is what may follow the first j of the returned tokens;
        rows behind the end of the text stay as they are. The mask token is never allowed. Raises InputError where the
        grammar cannot be followed any further.
        """

    def commit(self, tokens: Sequence[int]) -> None:
        """These have become text; raises InputError as `allowed`."""
