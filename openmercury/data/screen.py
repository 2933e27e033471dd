"""A quick look that tells most documents cannot repeat an evaluation item, before `BenchmarkIndex.find` looks closely.

The screen lets a document through only if it shares no run of words with what `find` compares, and no function with the
outline of an item's. It may be wrong in one way alone, which costs time: a close look at a document that is clean.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import numpy as np

from openmercury.data.decontaminate import GRAM, PROMPT_GRAM, BenchmarkIndex, function_keys
from openmercury.data.dedup import run_hashes, tuple_hashes, word_hashes
from openmercury.data.functions import Def, parse

CORE = 5  # words of the shortest description that `find` looks for

Outline = tuple[object, ...]


class Screen:
    """Built once from an index."""

    def __init__(self, index: BenchmarkIndex) -> None:
        self.index = index
        cores = (core[:CORE] for core in index.cores)
        self._runs = {CORE: np.unique(tuple_hashes(cores, CORE)), GRAM: np.unique(tuple_hashes(index.by_gram, GRAM))}
        self._runs[PROMPT_GRAM] = np.unique(tuple_hashes(index.prompt_grams, PROMPT_GRAM))
        self._outlines = {outline(node) for item in index.items for node in _functions(parse(item.solution))}

    def find(self, text: str, language: str) -> tuple[str, str] | None:
        """As `BenchmarkIndex.find` of a text that is code."""
        return self.index.find("", code=text) if self.suspects(text, language) else None

    def suspects(self, text: str, language: str) -> bool:
        """Whether a close look is needed."""
        runs = run_hashes(word_hashes(text), *self._runs)
        if any(map(_meets, runs, self._runs.values())):
            return True
        return language == "python" and any(map(self._knows, _functions(parse(text))))

    def _knows(self, node: Def) -> bool:
        return outline(node) in self._outlines and any(key in self.index.trees for key in function_keys(node))


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


def _meets(runs: np.ndarray, known: np.ndarray) -> bool:
    """Whether an element of `runs` is in `known`, which is sorted."""
    if not len(runs) or not len(known):
        return False
    places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
    return bool((known[places] == runs).any())
