"""A quick look that tells most documents cannot repeat an evaluation item, before `BenchmarkIndex.find` looks closely.

The screen lets a document through only if it shares no run of words with what `find` compares, and no function with the
outline of an item's. It may be wrong in one way alone, which costs time: a close look at a document that is clean.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

import numpy as np

from openmercury.data.decontaminate import CORE, GRAM, PROMPT_GRAM, BenchmarkIndex, function_keys
from openmercury.data.dedup import run_hashes, tuple_hashes, word_hashes
from openmercury.data.functions import Def, parse

Outline = tuple[object, ...]
LEADING = 22  # bits of a hash
SHIFT = np.uint64(64 - LEADING)


class Screen:
    """Built once from an index."""

    def __init__(self, index: BenchmarkIndex) -> None:
        self.index = index
        runs: dict[int, Mapping[tuple[str, ...], object]] = {
            CORE: index.core_starts,
            GRAM: index.by_gram,
            PROMPT_GRAM: index.prompt_grams,
        }
        self._runs = {size: Known(tuple_hashes(known, size)) for size, known in runs.items()}
        nodes = [node for item in index.items for node in _functions(parse(item.solution))]
        self._named = {(node.name, outline(node)) for node in nodes}
        self._nameless = {outline(node) for node in nodes if len(function_keys(node)) > 1}

    def find(self, text: str, language: str) -> tuple[str, str] | None:
        """As `BenchmarkIndex.find` of a text that is code."""
        return self.index.find("", code=text) if self.suspects(text, language) else None

    def suspects(self, text: str, language: str) -> bool:
        """Whether a close look is needed."""
        runs = run_hashes(word_hashes(text), *self._runs)
        if any(map(Known.meets, self._runs.values(), runs)):
            return True
        return language == "python" and any(map(self._knows, _functions(parse(text))))

    def _knows(self, node: Def) -> bool:
        told = outline(node)
        likely = told in self._nameless or (node.name, told) in self._named
        return likely and any(key in self.index.trees for key in function_keys(node))


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


class Known:
    """A set of hashes that can be asked whether any of many is in it."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.sorted = np.unique(hashes)
        # By far most of what is asked for is not there, which a table of the leading bits tells sooner than a search.
        self.leading = np.zeros(1 << LEADING, bool)
        self.leading[self.sorted >> SHIFT] = True

    def meets(self, hashes: np.ndarray) -> bool:
        """Whether any of `hashes` is in the set."""
        likely = hashes[self.leading[hashes >> SHIFT]]
        places = np.searchsorted(self.sorted, likely)
        return bool((self.sorted[np.minimum(places, len(self.sorted) - 1)] == likely).any()) if len(likely) else False
