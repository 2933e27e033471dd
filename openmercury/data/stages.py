"""What happens to one file on its way: each stage is a pure function `Document → Document | Drop(reason)`.

    decode → licence → filter → syntax → scrub → decontaminate

An edit goes through with both of its sides, and is dropped with either. `Ledger` counts what each stage saw, took and
dropped; it is summed over units, and says nothing that depends on who did the work but for seconds and memory.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from openmercury.data import filters, languages, licences
from openmercury.data.config import PrepareRecipe
from openmercury.data.decontaminate import BenchmarkIndex, eval_folder
from openmercury.data.document import Document
from openmercury.data.screen import Screen
from openmercury.data.scrub import scrub
from openmercury.data.sources import Drop, Raw, RawEdit

_PLAIN = re.compile(r"[\w.+() -]{1,40}", re.ASCII)  # what strangers wrote is shown only where it is a short expression
READ, DECONTAMINATE, DEDUP = "read", "decontaminate", "deduplicate"


@dataclass(frozen=True)
class Edit:
    """One file before and after a change."""

    before: Document
    after: Document


Item: TypeAlias = Document | Edit


class Stage(NamedTuple):
    """A step with the name that reports give it."""

    name: str
    apply: Callable[[Document], Document | Drop]


@dataclass
class Ledger:
    """Counts of work done: files, bytes and CPU seconds by stage, drops by (stage, reason), peak bytes by phase."""

    documents: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    drops: Counter[tuple[str, str]] = field(default_factory=Counter)
    scrubbed: int = 0
    memory: dict[str, int] = field(default_factory=dict)

    def add(self, other: Ledger) -> None:
        """Takes in the counts of another; memory is the largest of any."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.drops += other.drops
        for stage, seconds in other.seconds.items():
            self.spent(stage, seconds)
        self.scrubbed += other.scrubbed
        for phase, size in other.memory.items():
            self.memory[phase] = max(size, self.memory.get(phase, 0))

    def saw(self, stage: str, size: int, seconds: float) -> None:
        """One item went through a stage."""
        self.documents[stage] += 1
        self.bytes[stage] += size
        self.spent(stage, seconds)

    def spent(self, stage: str, seconds: float) -> None:
        """Time that a stage took."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "drops": [[*key, count] for key, count in sorted(self.drops.items())]}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Ledger:
        """What `as_json` gave."""
        drops = Counter({(stage, reason): count for stage, reason, count in told["drops"]})
        documents, size = Counter(told["documents"]), Counter(told["bytes"])
        return cls(documents, size, told["seconds"], drops, told["scrubbed"], told["memory"])


def decode(raw: Raw) -> Document | Drop:
    """The text of a file and its language."""
    language = raw.language or languages.by_name(raw.path) or ""
    text, problem = filters.decode(raw.data, language)
    if text is None:
        return Drop(str(problem))
    language = raw.language or languages.detect(raw.path, text) or ""
    if not language:
        return Drop("no language of the recipe")
    return Document(raw.id, text, language, raw.licence, raw.path)


@functools.lru_cache(maxsize=1)
def build(recipe: PrepareRecipe) -> tuple[Stage, ...]:
    """The stages of a recipe. Raises DataError when evaluation data or a package it needs is missing."""
    made = [
        Stage("licence", functools.partial(check_licence, recipe)),
        Stage("filter", functools.partial(_filter, recipe)),
    ]
    if recipe.filters.syntax:
        made.append(Stage("syntax", _syntax))
    if recipe.scrub:
        made.append(Stage("scrub", _scrub))
    if recipe.decontaminate:
        made.append(Stage(DECONTAMINATE, functools.partial(_decontaminate, _screen(recipe.eval_data))))
    return tuple(made)


@functools.lru_cache(maxsize=1)
def _screen(eval_data: Path | None) -> Screen:
    return Screen(BenchmarkIndex.load(eval_folder(eval_data, "give eval_data=FOLDER (or decontaminate=false)")))


def benchmarks_hash(recipe: PrepareRecipe) -> str | None:
    """sha256 of the evaluation items that are kept out; None where none are."""
    if not recipe.decontaminate:
        return None
    items = _screen(recipe.eval_data).index.items
    return hashlib.sha256("\0".join(map(repr, items)).encode()).hexdigest()


def check_licence(recipe: PrepareRecipe, document: Document) -> Document | Drop:
    """The header of the file first, then what its surroundings say."""
    licence = licences.by_header(document.text) or document.licence
    if not licence:
        return Drop("no licence known")
    if not licences.allowed(licence, recipe.licences):
        return Drop(f"licence {licence if _PLAIN.fullmatch(licence) else 'of several'}")
    return replace(document, licence=licence)


def _filter(recipe: PrepareRecipe, document: Document) -> Document | Drop:
    if document.language not in recipe.languages:
        return Drop("no language of the recipe")
    reason = filters.reason(document, recipe.filters)
    return document if reason is None else Drop(reason)


def _syntax(document: Document) -> Document | Drop:
    reason = filters.syntax_reason(document)
    return document if reason is None else Drop(reason)


def _scrub(document: Document) -> Document:
    text, count = scrub(document.text)
    return replace(document, text=text) if count else document


def _decontaminate(screen: Screen, document: Document) -> Document | Drop:
    try:
        hit = screen.find(document.text, document.language)
    except RecursionError:  # of a syntax tree, as of a thousand elif
        return Drop("nested too deeply to compare")
    return document if hit is None else Drop(": ".join(hit))


def run(items: Iterable[Raw | RawEdit | Drop], stages: tuple[Stage, ...], ledger: Ledger) -> Iterator[Item]:
    """What is left of the files of a unit, in order."""
    source = iter(items)
    while True:
        start = time.thread_time()
        item = next(source, None)
        spent = time.thread_time() - start
        if item is None:
            return
        if isinstance(item, Drop):
            ledger.spent(READ, spent)
            ledger.drops[READ, item.reason] += 1
            continue
        ledger.saw(READ, sum(len(raw.data) for raw in _sides(item)), spent)
        kept = _through(item, stages, ledger)
        if kept is not None:
            yield kept


def _sides(item: Raw | RawEdit) -> tuple[Raw, ...]:
    return (item,) if isinstance(item, Raw) else (item.before, item.after)


def _through(item: Raw | RawEdit, stages: tuple[Stage, ...], ledger: Ledger) -> Item | None:
    documents = []
    for raw in _sides(item):
        document = _timed("decode", decode, raw, len(raw.data), ledger)
        for stage in stages:
            if document is None:
                return None
            before = document
            document = _timed(stage.name, stage.apply, before, len(before.text), ledger)
            ledger.scrubbed += document is not None and document.text is not before.text
        if document is None:
            return None
        documents.append(document)
    if isinstance(item, Raw):
        return documents[0]
    before, after = documents
    return Edit(before, after)


def _timed(
    name: str, apply: Callable[[Any], Document | Drop], given: Raw | Document, size: int, ledger: Ledger
) -> Document | None:
    start = time.thread_time()
    result = apply(given)
    ledger.saw(name, size, time.thread_time() - start)
    if isinstance(result, Drop):
        ledger.drops[name, result.reason] += 1
        return None
    return result
