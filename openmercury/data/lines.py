"""A tokenizer that remembers lines: code says much of the same again, and a file with a hole is encoded a second time.

Where the tokenizer first splits text by an expression that ends a piece at the last of a run of line ends (as those of
Qwen, Llama 3 and GPT-4 do), nothing reaches over the beginning of a line that is not blank: the ids of a text are those
of its lines.
"""

from __future__ import annotations

import json
import re
from array import array
from typing import Any

import tokenizers

from openmercury.text.tokenizer import Tokenizer

ENDS_AT_LINES = r"|\s*[\r\n]+|"
REMEMBERED = 300_000  # lines: some 100 MB
_CUT = re.compile(r"(?<=\n)(?=[^\r\n]*\S)")


class LineTokenizer(Tokenizer):
    """Encodes as its base does, and about as fast the first time; lines that it has seen cost a look into a table."""

    def __init__(self, core: tokenizers.Tokenizer, facts: dict[str, Any]) -> None:
        """As the base; where lines of this tokenizer do not stand alone, `encode` is the base's."""
        super().__init__(core, facts)
        self.by_lines = _splits_at_lines(core)
        self._known: dict[str, array[int]] = {}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """As of the base."""
        if special or not self.by_lines:
            return super().encode(text, special=special)
        ids: list[int] = []
        for line in _CUT.split(text):
            found = self._known.get(line)
            if found is None:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                found = self._known[line] = array("i", super().encode(line))
            ids.extend(found)
        return ids


def _splits_at_lines(core: tokenizers.Tokenizer) -> bool:
    told = json.loads(core.to_str())
    normalizer = told["normalizer"] or {"type": "NFC"}
    strips = any(token["lstrip"] or token["rstrip"] for token in told["added_tokens"])
    return ENDS_AT_LINES in _first_pattern(told["pre_tokenizer"]) and normalizer["type"] == "NFC" and not strips


def _first_pattern(step: dict[str, Any] | None) -> str:
    """The expression that a text is split by before anything else is done with it; "" where there is none."""
    if step is None:
        return ""
    if step["type"] == "Sequence":
        return _first_pattern(step["pretokenizers"][0])
    return str(step.get("pattern", {}).get("Regex", "")) if step["type"] == "Split" else ""
