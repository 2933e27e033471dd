"""From a recipe to a folder of shards, in units of work whose results are on disk.

    plan         sources → units of work, in a fixed order
    read         each unit: files → documents → stages → fingerprints        units/KEY.safetensors   many workers
    deduplicate  all fingerprints in order → what is kept                    (nothing written)       one process
    write        runs of kept documents → examples → shards                  shards/KEY.safetensors  many workers
    finish       report written, shards renamed into OUT, the manifest last

KEY is a hash of all that a result depends on. A run that was killed finds the results that are there and makes the
rest; neither that nor the number of workers changes a bit of the shards or the manifest.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from openmercury.data import executors, scrub, sources, stages, units
from openmercury.data.config import PrepareRecipe
from openmercury.data.dedup import duplicates
from openmercury.data.document import Document
from openmercury.data.examples import make_edit_examples, make_examples
from openmercury.data.lines import LineTokenizer
from openmercury.data.shards import (
    MANIFEST,
    Example,
    Facts,
    check_out,
    read_facts,
    read_manifest,
    sum_facts,
    write_manifest,
    write_shard,
    write_whole,
)
from openmercury.data.sources import Limits, Plan, Unit
from openmercury.data.stages import DEDUP, Item, Ledger
from openmercury.errors import DataError
from openmercury.text.tokenizer import Tokenizer

FORMAT = 2  # of the results in the working folder: raise it when a stage's outcome changes
SHARDS = "shard-*.safetensors"
FREE = ("out", "workers", "executor", "address", "pictures")  # keys of the recipe that change no result
InputT = TypeVar("InputT")
Watch = Callable[[str, int, int], None]  # phase, done, of how many


class ShardPlan(NamedTuple):
    """A run of kept documents: units by number, and which of their items."""

    pieces: tuple[tuple[Path, tuple[int, ...]], ...]
    size: int


@dataclass
class Outcome:
    """What a run gave, for its report."""

    recipe: PrepareRecipe
    facts: Facts
    shards: Sequence[Path]
    ledger: Ledger
    kept: int
    lengths: Counter[int]  # examples by the binary logarithm of their tokens
    seconds: dict[str, float] = field(default_factory=dict)  # by phase, of this start alone


def prepare(
    recipe: PrepareRecipe, watch: Watch = lambda *_: None, tell: Callable[[Outcome], object] = lambda _: None
) -> Outcome | None:
    """Make `recipe.out`; None when it is there already, made by the same recipe from the same sources.

    `tell` writes the report; it is called before the folder counts as made, so a run that is stopped there tells again.
    Raises DataError when a source, a package or disk space is missing, nothing is left, or `out` holds something else.
    """
    if recipe.scrub:
        scrub.patterns()
    stages.build(recipe)  # what is missing should be told before the work, not by a worker
    plan = [sources.plan(number, source, _limits(recipe)) for number, source in enumerate(recipe.sources)]
    told = _told(recipe, [unit for part in plan for unit in part.units])
    if _is_made(recipe.out, told):
        return None
    check_out(recipe.out, SHARDS)
    work = recipe.out / ".work"
    with _alone(work):
        outcome = _make(recipe, plan, work, watch)
        tell(outcome)
        _finish(recipe.out, outcome.shards, told)
        shutil.rmtree(work)
        return outcome


def _make(recipe: PrepareRecipe, plan: Sequence[Plan], work: Path, watch: Watch) -> Outcome:
    listed = [unit for part in plan for unit in part.units]
    ledger = Ledger()
    seconds: dict[str, float] = {}
    for part in plan:
        ledger.drops.update({(stages.READ, reason): count for reason, count in part.drops.items()})

    clock = _Clock(seconds)
    paths = _read(recipe, listed, work / "units", watch)
    clock("read")
    for path in paths:
        ledger.add(units.read_ledger(path))
    kept = _deduplicate(recipe, paths, ledger, watch)
    clock(DEDUP)
    if not any(len(numbers) for _, numbers, _ in kept):
        raise DataError(f"nothing is left of {len(listed)} units of work: {_why(ledger)}")
    made, lengths = _write(recipe, kept, work / "shards", ledger, watch)
    clock("write")
    facts = sum_facts({path: read_facts(path) for path in made})
    return Outcome(recipe, facts, made, ledger, sum(len(each) for _, each, _ in kept), lengths, seconds)


# --- read ------------------------------------------------------------------------------------------------------------


def _limits(recipe: PrepareRecipe) -> Limits:
    return Limits(recipe.languages, recipe.filters.max_file_bytes, recipe.max_archive_bytes, recipe.skip_paths)


def _read(recipe: PrepareRecipe, listed: Sequence[Unit], folder: Path, watch: Watch) -> list[Path]:
    """Results of all units, in order."""
    plain = [_plain(recipe, "shard_bytes", "tokenizer", "sources", "examples"), stages.benchmarks_hash(recipe)]
    keys = [_key(plain, recipe.sources[unit.source].model_dump(mode="json"), unit.items) for unit in listed]
    paths = [folder / f"{key}.safetensors" for key in keys]
    inputs = sorted(zip(listed, paths, strict=True), key=lambda pair: -pair[0].size)  # the largest must not come last
    _run(recipe, functools.partial(_read_unit, recipe), inputs, [unit.size for unit, _ in inputs], "read", watch)
    return paths


def _read_unit(recipe: PrepareRecipe, given: tuple[Unit, Path]) -> int:
    unit, path = given
    ledger = Ledger()
    items = sources.read(recipe.sources[unit.source], unit, _limits(recipe))
    units.write(path, stages.run(items, stages.build(recipe), ledger), ledger, recipe.dedup, recipe.seed)
    return unit.size


def _run(
    recipe: PrepareRecipe,
    job: Callable[[tuple[InputT, Path]], int],
    inputs: Sequence[tuple[InputT, Path]],
    sizes: Sequence[int],
    phase: str,
    watch: Watch,
) -> None:
    """Do those inputs whose results are not there, and tell how far all of them are."""
    there = [path.exists() for _, path in inputs]
    done, whole = sum(size for size, had in zip(sizes, there, strict=True) if had), sum(sizes)
    watch(phase, done, whole)
    missing = [one for one, had in zip(inputs, there, strict=True) if not had]
    results: Iterator[int]
    if recipe.executor == "ray":
        results = executors.run_on_ray(job, missing, recipe.workers, recipe.address)
    else:
        results = executors.run_here(job, missing, recipe.workers)
    for size in results:
        done += size
        watch(phase, done, whole)


# --- deduplicate -----------------------------------------------------------------------------------------------------

Kept = tuple[Path, tuple[int, ...], np.ndarray]  # a unit, which of its items, and the bytes of each


def _deduplicate(recipe: PrepareRecipe, paths: Sequence[Path], ledger: Ledger, watch: Watch) -> list[Kept]:
    watch(DEDUP, 0, 1)
    start = time.thread_time()
    prints = [units.read_prints(path) for path in paths]
    first = np.concatenate(([0], np.cumsum([len(one.sizes) for one in prints], dtype=np.int64)))
    found: dict[int, str] = {}
    if first[-1]:
        digests, bands = (np.concatenate([getattr(one, name) for one in prints]) for name in ("digests", "bands"))
        shingles = units.Shingles(list(paths), first[:-1])
        found = duplicates(digests, bands, recipe.dedup.threshold, shingles)
    kept = []
    for path, one, begin in zip(paths, prints, first[:-1].tolist(), strict=True):
        numbers = tuple(number for number in range(len(one.sizes)) if begin + number not in found)
        kept.append((path, numbers, one.sizes[np.array(numbers, np.int64)]))
    ledger.drops.update({(DEDUP, reason): count for reason, count in Counter(found.values()).items()})
    ledger.documents[DEDUP] = int(first[-1])
    ledger.bytes[DEDUP] = sum(int(one.sizes.sum()) for one in prints)
    ledger.spent(DEDUP, time.thread_time() - start)
    ledger.memory[DEDUP] = units.peak_memory()
    watch(DEDUP, 1, 1)
    return kept


# --- write -----------------------------------------------------------------------------------------------------------


def _write(
    recipe: PrepareRecipe, kept: Sequence[Kept], folder: Path, ledger: Ledger, watch: Watch
) -> tuple[list[Path], Counter[int]]:
    """The shards in order, and how long their examples are."""
    plain = [recipe.examples.model_dump(mode="json"), _tokenizer(recipe.tokenizer).fingerprint]
    plans = list(_shard_plans(recipe, kept))
    paths = [folder / f"{_key(plain, [(path.name, numbers) for path, numbers in one.pieces])}.json" for one in plans]
    inputs = list(zip(plans, paths, strict=True))
    _run(recipe, functools.partial(_write_one, recipe), inputs, [one.size for one in plans], "write", watch)
    lengths: Counter[int] = Counter()
    for path in paths:
        told = json.loads(path.read_text())
        ledger.add(Ledger.from_json(told["ledger"]))
        lengths.update({int(key): count for key, count in told["lengths"].items()})
    return [path.with_suffix(".safetensors") for path in paths], lengths


def _shard_plans(recipe: PrepareRecipe, kept: Sequence[Kept]) -> Iterator[ShardPlan]:
    """Units in an order drawn from the seed, so that each shard holds of all sources; cut after `shard_bytes`."""
    ordered = sorted((one for one in kept if one[1]), key=lambda one: _key(recipe.seed, one[0].name))
    pieces: list[tuple[Path, tuple[int, ...]]] = []
    size = 0
    for path, numbers, sizes in ordered:
        start = 0
        for at, more in enumerate(sizes.tolist()):
            size += more
            if size >= recipe.shard_bytes:
                yield ShardPlan((*pieces, (path, numbers[start : at + 1])), size)
                pieces, size, start = [], 0, at + 1
        if numbers[start:]:
            pieces.append((path, numbers[start:]))
    if pieces:
        yield ShardPlan(tuple(pieces), size)


def _write_one(recipe: PrepareRecipe, given: tuple[ShardPlan, Path]) -> int:
    plan, path = given
    tokenizer = _tokenizer(recipe.tokenizer)
    ledger = Ledger()
    examples: list[Example] = []
    for unit, numbers in plan.pieces:
        wanted = set(numbers)
        for number, item in enumerate(units.read_items(unit)):
            if number in wanted:
                start = time.thread_time()
                examples += map(_small, _examples(item, recipe, tokenizer))
                size = len(item.text) if isinstance(item, Document) else len(item.before.text) + len(item.after.text)
                ledger.saw("examples", size, time.thread_time() - start)
    start = time.thread_time()
    write_shard(
        path.with_suffix(".safetensors"),
        examples,
        tokenizer=tokenizer.fingerprint,
        block_size=recipe.examples.block_size,
    )
    ledger.saw("write", plan.size, time.thread_time() - start)
    ledger.memory["write"] = units.peak_memory()
    lengths = Counter(len(one.ids).bit_length() for one in examples)
    write_whole(path, json.dumps({"ledger": ledger.as_json(), "lengths": lengths}).encode())
    return plan.size


def _examples(item: Item, recipe: PrepareRecipe, tokenizer: Tokenizer) -> list[Example]:
    if isinstance(item, Document):
        return make_examples(item, recipe.examples, tokenizer)
    return make_edit_examples(item.before, item.after, recipe.examples, tokenizer)


def _small(example: Example) -> Example:
    """The same in a ninth of the memory: a shard's worth of Python integers is several hundred MB."""
    return example._replace(ids=array("i", example.ids))


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Tokenizer:
    return LineTokenizer.load(folder)


# --- finish ----------------------------------------------------------------------------------------------------------


def _finish(out: Path, made: Sequence[Path], told: dict[str, Any]) -> None:
    """Names the shards by number and writes the manifest; a start after a kill in here makes those moved again."""
    names = [f"shard-{number:05d}.safetensors" for number in range(len(made))]
    for path, name in zip(made, names, strict=True):
        path.with_suffix(".json").unlink()  # first: a shard that was moved away must not seem to be there
        os.replace(path, out / name)
    for path in set(out.glob(SHARDS)) - {out / name for name in names}:
        path.unlink()
    write_manifest(out, told)


def _is_made(out: Path, told: dict[str, Any]) -> bool:
    if not (out / MANIFEST).exists():
        return False
    if read_manifest(out).recipe == told:
        return True
    raise DataError(f"{out} holds shards of another recipe or of other sources: name another `out`, or delete it")


def _told(recipe: PrepareRecipe, listed: Sequence[Unit]) -> dict[str, Any]:
    """What the manifest says of its making: the recipe, and a hash of all units that were read."""
    return {
        "prepare": _plain(recipe),
        "tokenizer": _tokenizer(recipe.tokenizer).fingerprint,
        "benchmarks": stages.benchmarks_hash(recipe),
        "units": len(listed),
        "sources": _key([unit.items for unit in listed]),
    }


def _plain(recipe: PrepareRecipe, *without: str) -> dict[str, Any]:
    """The recipe as JSON with sets in order, free keys left out."""
    told = recipe.model_dump(mode="json", exclude={*FREE, *without})
    return {key: sorted(value) if key in ("languages", "licences") else value for key, value in told.items()}


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:32]


def _why(ledger: Ledger) -> str:
    most = ledger.drops.most_common(1)
    if not most:
        return "the sources hold no files; correct their paths"
    (stage, reason), count = most[0]
    return f"{count} files were dropped by {stage} ({reason}); correct the sources or loosen the recipe"


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Raises DataError while another run works in the same folder: both would write the same files."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        with (work / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError:
        raise DataError(f"another run is at work in {work.parent}: wait for it, or name another `out`") from None


class _Clock:
    """Notes how long each phase took."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def __call__(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase], self.last = now - self.last, now
