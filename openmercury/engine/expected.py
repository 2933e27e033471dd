"""Drafts from text that is expected to come: of an edit, the original.

The text follows it while its new tokens are the next ones there. Where they part, an edit has begun; where its last few
tokens stand there again, behind the place where they parted if possible, it is over. (Drafts copied from a given text:
prompt lookup decoding; inference with reference, arXiv 2304.04487.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

COPYING_MODES = ("verified", "auto")  # that make use of it
COPY_WIDTH = 31  # tokens drafted at a time: a forward over 32 positions costs little more than one over a few
KNOWN = 3  # tokens that must stand in the expected text in this order before it is followed again


class Expected:
    """Tokens expected behind the first `begin` of a text, and where in them the text is."""

    def __init__(self, ids: Sequence[int], begin: int) -> None:
        self.ids = tuple(ids)
        self._at = 0  # where the text's next token is expected, or, while lost, where it went another way
        self._lost = False
        self._read = begin  # tokens of the text seen so far
        self._ends: dict[tuple[int, ...], list[int]] = defaultdict(list)  # run of KNOWN tokens → where each ends
        for end in range(KNOWN, len(self.ids) + 1):
            self._ends[self.ids[end - KNOWN : end]].append(end)

    def drafts(self, text: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow `text`, which has grown since the last call or not; none while lost."""
        for end in range(self._read + 1, len(text) + 1):
            self._follow(text, end)
        self._read = len(text)
        return [] if self._lost else list(self.ids[self._at : self._at + most])

    def _follow(self, text: Sequence[int], end: int) -> None:
        if not self._lost and self._at < len(self.ids) and self.ids[self._at] == text[end - 1]:
            self._at += 1
            return
        self._lost = True
        known = self._ends.get(tuple(text[max(0, end - KNOWN) : end]), ())
        if known:
            self._at = next((place for place in known if place > self._at), known[-1])
            self._lost = False
