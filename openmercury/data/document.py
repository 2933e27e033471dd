"""One file of source text with where it came from: the unit that sources hand to filters and examples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text file. `id` is unique in a corpus (package==version:path); `licence` is the name the package declares."""

    id: str
    text: str
    language: str
    licence: str
    path: str
