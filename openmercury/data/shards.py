"""Example shards: everything that is trained on, in one form on disk.

    folder/manifest.json         whose tokenizer, how many of what, the sha256 of every shard, the recipe that made them
    folder/NAME.safetensors      ids int32 [tokens], loss bool [tokens], length int32 [examples], kind uint8 [examples]

Examples lie end to end, of any length; rows are made of them when they are read. A file is written under a temporary
name, synced and renamed, the manifest last: what is there is whole, and a folder without manifest is not finished.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from openmercury.config import Frozen
from openmercury.errors import ConfigError, DataError
from openmercury.text.tokenizer import Tokenizer

Kind: TypeAlias = Literal["code", "fim", "chat", "edit", "apply", "chosen", "rejected"]
KINDS: tuple[Kind, ...] = get_args(Kind)  # shards hold the place in it: append only
MANIFEST = "manifest.json"
FACTS = "openmercury"  # key of a shard's header; a single one, for the library writes several in any order


class Example(NamedTuple):
    """Token ids and which of them are trained on: one flag a token, or the number of first tokens that are not."""

    ids: Sequence[int]
    loss: int | Sequence[bool]
    kind: Kind = "code"
    language: str = ""
    licence: str = ""

    def flags(self) -> np.ndarray:
        """Is the token trained on? bool [tokens]."""
        if isinstance(self.loss, int):
            return np.array([False] * self.loss + [True] * (len(self.ids) - self.loss))
        return np.asarray(self.loss, dtype=bool)


class Examples(NamedTuple):
    """Many examples end to end: `ids` int32 and `loss` bool [tokens], `length` int32 and `kind` uint8 [examples]."""

    ids: np.ndarray
    loss: np.ndarray
    length: np.ndarray
    kind: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """Offset of each example in `ids`."""
        begin: np.ndarray = np.cumsum(self.length, dtype=np.int64) - self.length
        return begin

    def each(self) -> Iterator[Example]:
        """One after another, without language and licence, which only counts are kept of."""
        for start, length, kind in zip(self.start, self.length, self.kind, strict=True):
            part = slice(start, start + length)
            yield Example(self.ids[part].tolist(), self.loss[part].tolist(), KINDS[kind])


class Counts(Frozen):
    """Examples, their tokens, and how many of those are trained on."""

    examples: int = 0
    tokens: int = 0
    trained: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            examples=self.examples + other.examples,
            tokens=self.tokens + other.tokens,
            trained=self.trained + other.trained,
        )


class Facts(Frozen):
    """What is known of a shard, or of all shards of a folder. `tokenizer`: `Tokenizer.fingerprint`, None: unknown.

    Where there is a `block_size`, the length of every example is a multiple of it.
    """

    tokenizer: str | None
    block_size: int | None
    counts: Counts
    kinds: dict[str, Counts]
    languages: dict[str, Counts]
    licences: dict[str, Counts]


class Entry(Frozen):
    """A shard as the manifest knows it."""

    name: str
    sha256: str
    examples: int
    tokens: int


class Manifest(Facts):
    """Facts of a folder, its shards in order of name, and the recipe that made them."""

    format: Literal[1] = 1
    shards: tuple[Entry, ...]
    recipe: dict[str, Any]


# --- writing ---------------------------------------------------------------------------------------------------------


def write_shard(
    path: Path, examples: Sequence[Example], *, tokenizer: str | None = None, block_size: int | None = None
) -> Facts:
    """Write a shard whole or not at all; the same examples give the same bytes. `write_manifest` must follow.

    Raises DataError where the disk is full or refuses.
    """
    flags = [one.flags() for one in examples]
    assert all(len(one.ids) == len(own) > 0 for one, own in zip(examples, flags, strict=True)), "a flag for each token"
    assert block_size is None or all(len(one.ids) % block_size == 0 for one in examples), "pad the examples first"
    facts = _facts(examples, flags, tokenizer, block_size)
    arrays = {
        "ids": _end_to_end([np.asarray(one.ids, dtype=np.int32) for one in examples], np.int32),
        "loss": _end_to_end(flags, np.bool_),
        "length": np.array([len(one.ids) for one in examples], dtype=np.int32),
        "kind": np.array([KINDS.index(one.kind) for one in examples], dtype=np.uint8),
    }
    write_whole(path, save(arrays, {FACTS: facts.model_dump_json()}))
    return facts


def pad(example: Example, block_size: int, pad_id: int) -> Example:
    """The example with untrained tokens behind it, up to a multiple of `block_size`."""
    more = -len(example.ids) % block_size
    return example._replace(ids=[*example.ids, *[pad_id] * more], loss=[*example.flags().tolist(), *[False] * more])


def check_out(folder: Path, ours: str) -> None:
    """Raises DataError where a folder is a checkpoint, or holds safetensors that do not fit the pattern `ours`."""
    others = {path.name for path in folder.glob("*.safetensors")} - {path.name for path in folder.glob(ours)}
    others |= {path.name for path in folder.glob("config.json")}
    if others:
        raise DataError(f"{folder} holds {min(others)}, which was not made by this command: name another folder")


def write_manifest(folder: Path, recipe: Mapping[str, Any] | None = None) -> Manifest:
    """Sum up all shards that lie in a folder; they must be of one tokenizer and one block size, else DataError."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise DataError(f"{folder} holds no shards: make some with `openmercury data prepare` or `data generate`")
    read = {path: read_facts(path) for path in paths}
    total, shards = sum_facts(read), []
    for path, facts in read.items():
        counts = facts.counts
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        shards.append(Entry(name=path.name, sha256=digest, examples=counts.examples, tokens=counts.tokens))
    manifest = Manifest(shards=tuple(shards), recipe=dict(recipe or {}), **dict(total))
    write_whole(folder / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


def sum_facts(read: Mapping[Path, Facts]) -> Facts:
    """The facts of some shards together, which must be of one tokenizer and one block size, else DataError."""
    (_, total), *others = read.items()
    for path, facts in others:
        total = _together(total, facts, path)
    return total


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, even if the machine stops. Raises DataError."""
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{path} cannot be written ({error.strerror}): free some space or name another folder"
        ) from None


def _end_to_end(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _facts(
    examples: Sequence[Example], flags: Sequence[np.ndarray], tokenizer: str | None, block_size: int | None
) -> Facts:
    tables: tuple[dict[str, list[int]], ...] = ({}, {}, {}, {})
    for one, own in zip(examples, flags, strict=True):
        for table, key in zip(tables, ("", one.kind, one.language, one.licence), strict=True):
            row = table.setdefault(key, [0, 0, 0])
            row[0], row[1], row[2] = row[0] + 1, row[1] + len(own), row[2] + int(own.sum())
    whole, kinds, languages, licences = (
        {key: Counts(examples=row[0], tokens=row[1], trained=row[2]) for key, row in sorted(table.items())}
        for table in tables
    )
    return Facts(
        tokenizer=tokenizer,
        block_size=block_size,
        counts=whole.get("", Counts()),
        kinds=kinds,
        languages=languages,
        licences=licences,
    )


def _together(total: Facts, facts: Facts, path: Path) -> Facts:
    for name in ("tokenizer", "block_size"):
        if getattr(total, name) != getattr(facts, name):
            raise DataError(f"{path} was made with another {name} than the shards beside it: take it out of the folder")
    sums = {name: _summed(getattr(total, name), getattr(facts, name)) for name in ("kinds", "languages", "licences")}
    return total.model_copy(update={"counts": total.counts + facts.counts, **sums})


def _summed(left: dict[str, Counts], right: dict[str, Counts]) -> dict[str, Counts]:
    return {key: left.get(key, Counts()) + right.get(key, Counts()) for key in sorted({*left, *right})}


# --- reading ---------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished folder, whose shards are all there and no others. Raises DataError."""
    path, names = folder / MANIFEST, {found.name for found in folder.glob("*.safetensors")}
    if not path.exists():
        why = "has shards and no manifest: start the command that makes them again, and it finishes them"
        none = "holds no shards: make some with `openmercury data prepare` or `data generate`"
        raise DataError(f"{folder} {why if names else none}")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no manifest of this version"
        raise DataError(f"{path} cannot be read ({reason}): make the folder again") from None
    listed = {shard.name for shard in manifest.shards}
    for what, found in (("is missing", listed - names), ("is not in the manifest", names - listed)):
        if found:
            raise DataError(f"{folder / min(found)} {what}: start the command that makes the folder again")
    return manifest


def read_facts(path: Path) -> Facts:
    """What a shard says of itself. Raises DataError."""
    try:
        with safe_open(path, "numpy") as file:
            return Facts.model_validate_json((file.metadata() or {})[FACTS])
    except (OSError, SafetensorError, KeyError, ValidationError) as error:
        raise _broken(path, error) from None


def read_shard(path: Path, sha256: str | None = None) -> Examples:
    """One shard, whose bytes must have this sha256. Raises DataError where they have not, or are no whole shard."""
    try:
        data = path.read_bytes()
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{path} has changed since its manifest was written: delete it and make it again")
        arrays = load(data)
        found = Examples(*(arrays[name] for name in Examples._fields))
    except (OSError, SafetensorError, KeyError) as error:
        raise _broken(path, error) from None
    if [array.dtype for array in found] != [np.int32, np.bool_, np.int32, np.uint8] or (found.length < 1).any():
        raise _broken(path, "its parts are of another form")
    tokens = int(found.length.sum(dtype=np.int64))
    if not len(found.ids) == len(found.loss) == tokens or len(found.length) != len(found.kind):
        raise _broken(path, "its parts differ in length")
    if len(found.kind) and found.kind.max() >= len(KINDS):
        raise DataError(f"{path} holds examples of a kind that this version does not know: use the one that made it")
    return found


def read_shards(folder: Path) -> Examples:
    """All examples of a folder in order of its shards' names, checked against the manifest. Raises DataError."""
    manifest = read_manifest(folder)
    parts: Iterable[Examples] = (read_shard(folder / shard.name, shard.sha256) for shard in manifest.shards)
    return Examples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _broken(path: Path, error: object) -> DataError:
    return DataError(f"{path} is not a whole shard ({error}): delete it and make it again")


# --- what a run must agree with --------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> str | None:
    """`Tokenizer.fingerprint` of a checkpoint folder; None where it has no tokenizer."""
    return Tokenizer.load(folder).fingerprint if (folder / "tokenizer.json").exists() else None


def check_fit(
    folder: Path,
    manifest: Manifest,
    *,
    tokenizer: str | None,
    row_length: int,
    block_sizes: Sequence[int] = (),
    pairs: bool = False,
) -> None:
    """Raises ConfigError where a folder of shards does not go with a run.

    `tokenizer` is the checkpoint's `fingerprint`, `block_sizes` are those that the run denoises (none for objectives
    without blocks), `pairs` says whether it learns from preferences.
    """
    if manifest.tokenizer != tokenizer:
        raise ConfigError(
            f"{folder} was made with another tokenizer than the checkpoint's: make the shards with this checkpoint"
        )
    if pairs != ("chosen" in manifest.kinds):
        raise ConfigError(
            f"{folder} holds no preference pairs: make some, or choose another objective than dpo"
            if pairs
            else f'{folder} holds preference pairs, and half of them are not to be learnt: write objective.kind = "dpo"'
        )
    size = manifest.block_size
    if size is None:
        return
    if row_length % size:
        raise ConfigError(f"row_length {row_length} is no multiple of {size}, the block size of {folder}: change it")
    for each in block_sizes:
        if size % each:
            raise ConfigError(
                f"block size {each} does not divide {size}, which the examples of {folder} are padded to: "
                f"use one that does, or make the shards again"
            )
