"""The result of one unit of work on disk, between the stages that see one file and those that see all.

One safetensors file, written whole or not at all: items as compressed JSON, their fingerprints, the unit's ledger.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from openmercury.data.config import DedupRecipe
from openmercury.data.dedup import bands, digest, shingles
from openmercury.data.document import Document
from openmercury.data.shards import write_whole
from openmercury.data.stages import Edit, Item, Ledger
from openmercury.errors import DataError

LEDGER = "ledger"


class Prints(NamedTuple):
    """Fingerprints of the items of a unit: digests uint64 [n, 2], bands uint64 [n, bands], bytes of text int64 [n]."""

    digests: np.ndarray
    bands: np.ndarray
    sizes: np.ndarray


def write(path: Path, items: Iterable[Item], ledger: Ledger, recipe: DedupRecipe, seed: int) -> None:
    """Fingerprint the items and write them; `ledger` may still grow while they come, and is written as it is then."""
    packer = zlib.compressobj(level=1)
    packed: list[bytes] = []
    digests, sizes, sets = [], [], []
    for item in items:
        start = time.thread_time()
        packed.append(packer.compress(json.dumps(_row(item), ensure_ascii=True).encode() + b"\n"))
        told = _told(item)
        digests.append(digest(told))
        sizes.append(_size(item))
        if recipe.near:
            sets.append(shingles(told, recipe.shingle))
        ledger.saw("fingerprint", _size(item), time.thread_time() - start)
    packed.append(packer.flush())
    start = time.thread_time()
    told_bands = bands(sets, recipe, seed) if recipe.near else np.zeros((len(sizes), 0), np.uint64)
    ledger.spent("fingerprint", time.thread_time() - start)
    ledger.memory["read"] = peak_memory()
    arrays: dict[str, np.ndarray] = {
        "items": np.frombuffer(b"".join(packed), np.uint8),
        "digests": np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2),
        "sizes": np.array(sizes, np.int64),
        "bands": told_bands,
        "shingles": np.concatenate(sets) if sets else np.zeros(0, np.uint64),
        "ends": np.cumsum([len(one) for one in sets], dtype=np.int64),
    }
    write_whole(path, save(arrays, {LEDGER: json.dumps(ledger.as_json())}))


def read_ledger(path: Path) -> Ledger:
    """What was counted while the unit was made."""
    with _open(path) as file:
        return Ledger.from_json(json.loads(file.metadata()[LEDGER]))


def read_prints(path: Path) -> Prints:
    """The fingerprints alone."""
    with _open(path) as file:
        return Prints(*(file.get_tensor(name) for name in Prints._fields))


def read_items(path: Path) -> Iterator[Item]:
    """The items in their order."""
    with _open(path) as file:
        data = zlib.decompress(file.get_tensor("items").tobytes())
    for line in data.split(b"\n")[:-1]:
        row = json.loads(line)
        if "after" in row:
            yield Edit(Document(**row["before"]), Document(**row["after"]))
        else:
            yield Document(**row)


class Shingles:
    """Shingles of items by number in the whole order, read from their units when asked for."""

    def __init__(self, paths: list[Path], first: np.ndarray) -> None:
        self.paths, self.first = paths, first
        self._open: dict[int, tuple[Any, np.ndarray]] = {}

    def __call__(self, number: int) -> np.ndarray:
        unit = int(np.searchsorted(self.first, number, side="right")) - 1
        if unit not in self._open:
            if len(self._open) >= 128:
                self._open.pop(next(iter(self._open)))
            arrays = _open(self.paths[unit]).__enter__()
            self._open[unit] = (arrays.get_slice("shingles"), arrays.get_tensor("ends"))
        part, ends = self._open[unit]
        place = number - int(self.first[unit])
        begin = int(ends[place - 1]) if place else 0
        found: np.ndarray = part[begin : int(ends[place])]
        return found


def _told(item: Item) -> str:
    """What makes an item the same as another: of an edit, the lines that it takes out and puts in."""
    if isinstance(item, Document):
        return item.text
    before, after = item.before.text.split("\n"), item.after.text.split("\n")
    old, new = set(before), set(after)
    return "\n".join([*(line for line in before if line not in new), "", *(line for line in after if line not in old)])


def _size(item: Item) -> int:
    return len(item.text) if isinstance(item, Document) else len(item.before.text) + len(item.after.text)


def _row(item: Item) -> dict[str, Any]:
    if isinstance(item, Document):
        return vars(item)
    return {"before": vars(item.before), "after": vars(item.after)}


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not whole ({error}): delete it and start again") from None


def peak_memory() -> int:
    """The most bytes this process has held at once, resident."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):  # no Linux
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
