"""Exact and near duplicates: fingerprints made by workers, one deterministic pass over all of them.

A near-duplicate is found by MinHash and banding (A. Broder 1997; Leskovec, Rajaraman, Ullman, ch. 3), and dropped only
where the true Jaccard similarity of the sets of word runs reaches the threshold. The first document of the order is
kept, and only kept ones make others drop: neither workers nor restarts change what stays.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from openmercury.data.config import DedupRecipe
from openmercury.errors import DataError

NO_RENSA = "near-duplicate removal needs rensa: pip install 'openmercury[data]', or set dedup.near=false"
_BASE = np.uint64(0x9E3779B97F4A7C15)
_WORD = re.compile(r"\w+")


@functools.lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@functools.lru_cache(maxsize=2)
def word_hashes(text: str) -> np.ndarray:
    """uint64 hash of every lower-case word token, in order."""
    words = _WORD.findall(text.lower())
    return np.fromiter(map(_word_hash, words), np.uint64, len(words))


def run_hashes(words: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """For every size, in rising order, the uint64 hash of every run of so many words."""
    found = []
    total = np.zeros(len(words), np.uint64)
    for size in range(1, sizes[-1] + 1):
        end = max(0, len(words) - size + 1)
        total = total[:end] * _BASE + words[size - 1 :][:end]
        if size in sizes:
            found.append(_mixed(total))
    return found


def tuple_hashes(runs: Iterable[Sequence[str]], size: int) -> np.ndarray:
    """uint64 hash of each of many runs of `size` words, as `run_hashes` gives it."""
    words = np.array([_word_hash(word) for run in runs for word in run], np.uint64).reshape(-1, size)
    total = np.zeros(len(words), np.uint64)
    for place in range(size):
        total = total * _BASE + words[:, place]
    return _mixed(total)


def _mixed(total: np.ndarray) -> np.ndarray:
    """Polynomial hashes are regular in their low bits; MinHash wants none of that."""
    mixed: np.ndarray = (total ^ total >> np.uint64(32)) * _BASE
    return mixed


def shingles(text: str, size: int) -> np.ndarray:
    """The set of runs of `size` words as sorted uint64 hashes; of a text with fewer words, all of them as one run."""
    words = word_hashes(text)
    return np.unique(run_hashes(words, min(size, len(words)) or 1)[0])


def digest(text: str) -> bytes:
    """16 bytes that are equal for texts that differ in blank space at line ends at most."""
    return hashlib.blake2b(
        "\n".join(map(str.rstrip, text.split("\n"))).encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


def bands(sets: Sequence[np.ndarray], recipe: DedupRecipe, seed: int) -> np.ndarray:
    """Hashes of the bands of the MinHash signatures of sets, uint64 [documents, bands]: two near sets share one.

    Raises DataError when rensa is not installed.
    """
    try:
        import rensa
    except ModuleNotFoundError:
        raise DataError(NO_RENSA) from None
    if not sets:
        return np.zeros((0, recipe.bands), np.uint64)
    offsets = np.concatenate(([0], np.cumsum([len(one) for one in sets]))).astype(np.uint64)
    rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(sets), offsets, recipe.bands * recipe.rows, seed
    ).to_rows()
    signature = np.array(rows, np.uint64).reshape(len(sets), recipe.bands, recipe.rows)
    total = np.zeros((len(sets), recipe.bands), np.uint64)
    for row in range(recipe.rows):
        total = total * _BASE + signature[:, :, row]
    return total


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Similarity of two sets of sorted distinct hashes; that of two empty ones is 0."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    whole = len(left) + len(right) - shared
    return shared / whole if whole else 0.0


def duplicates(
    digests: np.ndarray, bands: np.ndarray, threshold: float, shingles_of: Callable[[int], np.ndarray]
) -> dict[int, str]:
    """Number of every duplicate → "exact duplicate" or "near duplicate".

    `digests` are uint64 [documents, 2], `bands` uint64 [documents, bands] (0 bands: exact ones only). Only documents
    whose bands meet another's are looked at one by one; `shingles_of` gives their shingles by number.
    """
    _, first = np.unique(digests, axis=0, return_index=True)
    alone = np.zeros(len(digests), bool)
    alone[first] = True
    found = {int(number): "exact duplicate" for number in np.flatnonzero(~alone)}
    tables: list[dict[int, list[int]]] = [{} for _ in range(bands.shape[1])]
    for number in np.flatnonzero(_meeting(bands, alone)).tolist():
        keys = bands[number].tolist()
        near = {one for table, key in zip(tables, keys, strict=True) for one in table.get(key, ())}
        own = shingles_of(number) if near else None
        if own is not None and any(jaccard(own, shingles_of(one)) >= threshold for one in sorted(near)):
            found[number] = "near duplicate"
        else:
            for table, key in zip(tables, keys, strict=True):
                table.setdefault(key, []).append(number)
    return found


def _meeting(bands: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool [documents]: which of those `among` share a band's hash with another of them."""
    meeting = np.zeros(len(bands), bool)
    numbers = np.flatnonzero(among)
    for column in range(bands.shape[1]):
        _, inverse, count = np.unique(bands[numbers, column], return_inverse=True, return_counts=True)
        meeting[numbers[count[inverse] > 1]] = True
    return meeting
