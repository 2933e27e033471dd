"""Token ids to text that can never change: whole characters only, and nothing that may become a stop string.

Where stop strings overlap, the one that is complete first ends the text: it does not matter how the tokens arrive.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from openmercury.errors import InputError
from openmercury.text.tokenizer import Tokenizer


class TextStream:
    """Collects tokens; `push` returns the text that became certain. The text ends before the first stop string.

    text              all certain text so far: the deltas joined
    finished_by_stop  a stop string was found; what is pushed from then on is ignored
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """Raises InputError for an empty stop string."""
        if "" in stop:
            raise InputError("a stop string is empty: leave it out")
        self.text = ""
        self.finished_by_stop = False
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, ids: Iterable[int]) -> str:
        """Add tokens; returns the text that became certain."""
        data = b"".join(map(self._tokenizer.token_bytes, ids))
        return self._take(self._decoder.decode(data), final=False)

    @property
    def held(self) -> str:
        """What may yet become a stop string, and so is not certain."""
        return self._held

    def flush(self) -> str:
        """No more tokens come: returns what was held back, U+FFFD in place of a cut character."""
        return self._take(self._decoder.decode(b"", True), final=True)

    def _take(self, new: str, *, final: bool) -> str:
        if self.finished_by_stop:
            return ""
        held = self._held + new
        found = [(start + len(stop), start) for stop in self._stop if (start := held.find(stop)) >= 0]
        if found:
            self.finished_by_stop = True
            cut, self._held = min(found)[1], ""
        else:
            cut = len(held) - (0 if final else begun(held, self._stop))
            self._held = held[cut:]
        self.text += held[:cut]
        return held[:cut]


def begun(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `marks` without completing it."""
    tail = text[-max(map(len, marks), default=0) :] if marks else ""
    if not any(mark[0] in tail for mark in marks):  # as with nearly all text
        return 0
    for length in range(len(tail), 0, -1):
        end = text[-length:]
        if any(len(mark) > length and mark.startswith(end) for mark in marks):
            return length
    return 0
