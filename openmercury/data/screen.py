"""A quick look that tells most documents cannot repeat an evaluation item, before `BenchmarkIndex.find` looks closely.

The screen lets a document through only if it shares no run of words with what `find` compares, and no function with the
outline of an item's. It may be wrong in one way alone, which costs time: a close look at a document that is clean.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

import numpy as np

from openmercury.data.decontaminate import GRAM, PROMPT_GRAM, BenchmarkIndex
from openmercury.data.dedup import run_hashes, word_hashes, words_of
from openmercury.data.functions import Def, parse

CORE = 5  # words of the shortest description that `find` looks for
LONG = 600  # characters of a function's dump from which on `find` may know it under any name

Outline = tuple[object, ...]


class Screen:
    """Built once from an index."""

    def __init__(self, index: BenchmarkIndex) -> None:
        self.index = index
        self._runs = {
            GRAM: _known(index.by_gram, GRAM),
            PROMPT_GRAM: _known(index.prompt_grams, PROMPT_GRAM),
            CORE: _known((core[:CORE] for core in index.cores), CORE),
        }
        self._named: set[tuple[str, Outline]] = set()
        self._long: set[Outline] = set()
        for item in index.items:
            for node in _functions(parse(item.solution)):
                self._named.add((node.name, outline(node)))
                if len(ast.dump(node)) > LONG:
                    self._long.add(outline(node))

    def find(self, text: str, language: str) -> tuple[str, str] | None:
        """As `BenchmarkIndex.find` of a text that is code."""
        return self.index.find("", code=text) if self.suspects(text, language) else None

    def suspects(self, text: str, language: str) -> bool:
        """Whether a close look is needed."""
        hashes = word_hashes(text)
        if any(_meets(run_hashes(hashes, size), known) for size, known in self._runs.items()):
            return True
        return language == "python" and any(map(self._knows, _functions(parse(text))))

    def _knows(self, node: Def) -> bool:
        told = outline(node)
        return told in self._long or (node.name, told) in self._named


def outline(node: Def) -> Outline:
    """The kinds of the statements of a body, nested as they are, without those that are a constant alone."""
    return tuple(_shape(part) for part in node.body if not _is_constant(part))


def _shape(node: ast.stmt) -> Outline:
    return (type(node).__name__, *(tuple(map(_shape, block)) for block in _blocks(node)))


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Lists of statements directly in a node; expressions hold none."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list) and block:
            yield block
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield part.body


def _functions(tree: ast.AST | None) -> Iterator[Def]:
    waiting = [] if tree is None else [tree]
    while waiting:
        for block in _blocks(waiting.pop()):
            for node in block:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield node
                waiting.append(node)


def _known(runs: Iterable[tuple[str, ...]], size: int) -> np.ndarray:
    hashes = [run_hashes(words_of(run), size) for run in runs]
    return np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)


def _meets(runs: np.ndarray, known: np.ndarray) -> bool:
    """Whether an element of `runs` is in `known`, which is sorted."""
    if not len(runs) or not len(known):
        return False
    places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
    return bool((known[places] == runs).any())
