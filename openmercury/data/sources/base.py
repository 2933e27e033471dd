"""What every source gives: units of work, and from each unit raw files, raw edits and counted drops."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Raw:
    """The bytes of one file. `licence` and `language` are what its surroundings say, "" where they say nothing."""

    id: str
    path: str
    data: bytes
    licence: str = ""
    language: str = ""


@dataclass(frozen=True)
class RawEdit:
    """One file before and after a change."""

    before: Raw
    after: Raw


@dataclass(frozen=True)
class Drop:
    """Something that is left out, and why; every one is counted by its reason."""

    reason: str


@dataclass(frozen=True)
class Unit:
    """A piece of work that one worker reads in one go: a batch of files, an archive, a row group, some commits.

    `items` say what to read and carry the size and time of what they name, so that a changed file is another unit.
    `source` is the place of its source in the recipe, `size` its bytes as they lie on the disk.
    """

    source: int
    name: str
    items: tuple[tuple[str, ...], ...]
    size: int


@dataclass
class Plan:
    """The units of one source in order, and what was left out while listing them."""

    units: list[Unit] = field(default_factory=list)
    drops: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Limits:
    """What is read at all: languages, bytes of a file, bytes of an unpacked archive, path fragments to leave out."""

    languages: frozenset[str]
    max_file_bytes: int
    max_archive_bytes: int
    skip_paths: tuple[str, ...] = ()

    def skips(self, path: str) -> bool:
        """Whether a path holds one of the fragments, as in "/_vendor/"."""
        return any(part in f"/{path}" for part in self.skip_paths)


def stamp(path: Path) -> str:
    """Size and time of a file: what tells that it is still the one that was planned."""
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"
