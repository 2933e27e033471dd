"""Where the hole of a fill-in-the-middle example lies: at random characters, or at a node of the syntax.

Python is read by its own parser. Of other languages, and of Python that does not parse because it is a piece of a file,
the nodes are what a pair of brackets holds, what is left of a line, and runs of lines that are indented further.
"""

from __future__ import annotations

import ast
import itertools
import math
import random
import re
from collections.abc import Iterator
from typing import TypeAlias

from openmercury.data.document import Document
from openmercury.data.functions import parse

Span: TypeAlias = tuple[int, int]  # characters, the end not included
Placed: TypeAlias = ast.stmt | ast.expr | ast.keyword

MOST = 2000  # characters of a hole: about the 512 tokens that requests ask for
LEAST = 4
_SKIPPED = re.compile(
    r"\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`|//[^\n]*|/\*.*?\*/|#[^\n]*"
    r"|(?P<bracket>[()\[\]{}])",
    re.DOTALL,
)
_CLOSING = {")": "(", "]": "[", "}": "{"}


def random_span(text: str, drawn: random.Random) -> Span:
    """Short holes are as likely as long ones: the logarithm of the length is uniform. Not all of the text."""
    most = min(MOST, len(text) - 1)
    length = round(math.exp(drawn.uniform(math.log(min(LEAST, most)), math.log(most))))
    begin = drawn.randint(0, len(text) - length)
    return begin, begin + length


def syntax_span(text: str, language: str, drawn: random.Random) -> Span | None:
    """A node: first its kind is drawn, then one of those, by the root of its length; None where there are none.

    Most nodes are a word or two. Drawn alike, they would leave next to nothing of a row to train on.
    """
    kinds = _python(text) if language == "python" else None
    if kinds is None:
        kinds = {
            "brackets": list(_brackets(text)),
            "line": list(_line_ends(text)),
            "block": list(_blocks(text)),
        }
    usable = {kind: [span for span in spans if _fits(span, text)] for kind, spans in kinds.items()}
    known = sorted(kind for kind, spans in usable.items() if spans)
    if not known:
        return None
    spans = usable[drawn.choice(known)]
    return drawn.choices(spans, [math.sqrt(end - begin) for begin, end in spans])[0]


def _fits(span: Span, text: str) -> bool:
    begin, end = span
    most = min(MOST, len(text) - 1)
    return min(LEAST, most) <= end - begin <= most and bool(text[begin:end].strip())


def definitions(document: Document) -> list[str]:
    """Functions and classes of a Python file with the comments above them; none where it does not parse."""
    tree = parse(document.text) if document.language == "python" else None
    if tree is None:
        return []
    lines = document.text.split("\n")
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
            while first and lines[first - 1].startswith("#"):
                first -= 1
            found.append("\n".join(lines[first : node.end_lineno]) + "\n")
    return found


# --- Python ----------------------------------------------------------------------------------------------------------


def _python(text: str) -> dict[str, list[Span]] | None:
    """Statements, bodies, expressions and the arguments of calls; None where the text does not parse."""
    tree = None if "\r" in text.replace("\r\n", "") else parse(text)
    if tree is None:
        return None
    place = _Places(text)
    kinds: dict[str, list[Span]] = {"statement": [], "body": [], "expression": [], "arguments": []}
    for node in _nodes(tree):
        if isinstance(node, ast.stmt):
            kinds["statement"].append(place.of(node, node))
            body = getattr(node, "body", None)
            if body:
                kinds["body"].append(place.of(body[0], body[-1]))
        elif isinstance(node, ast.expr) and not isinstance(node, ast.Name | ast.Constant):
            kinds["expression"].append(place.of(node, node))
            if isinstance(node, ast.Call) and node.args:
                parts: list[Placed] = [*node.args, *node.keywords]
                spans = [place.of(part, part) for part in parts]
                kinds["arguments"].append((spans[0][0], max(end for _, end in spans)))
    return kinds


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those in f-strings, whose places are wrong before Python 3.12."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.JoinedStr):
            waiting += ast.iter_child_nodes(node)


class _Places:
    """Characters of the places the parser tells, which counts lines from 1 and columns in bytes."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.begins = list(itertools.accumulate((len(line) + 1 for line in self.lines), initial=0))

    def of(self, first: Placed, last: Placed) -> Span:
        assert last.end_lineno is not None
        assert last.end_col_offset is not None
        return self._at(first.lineno, first.col_offset), self._at(last.end_lineno, last.end_col_offset)

    def _at(self, line: int, column: int) -> int:
        text = self.lines[line - 1]
        if not text.isascii():
            column = len(text.encode()[:column].decode(errors="ignore"))
        return self.begins[line - 1] + column


# --- any language ----------------------------------------------------------------------------------------------------


def _brackets(text: str) -> Iterator[Span]:
    """What pairs of brackets hold, those in strings and comments left out."""
    opened: list[tuple[str, int]] = []
    for found in _SKIPPED.finditer(text):
        bracket = found["bracket"]
        if bracket is None:
            continue
        if bracket not in _CLOSING:
            opened.append((bracket, found.end()))
        elif opened and opened[-1][0] == _CLOSING[bracket]:
            yield opened.pop()[1], found.start()


def _line_ends(text: str) -> Iterator[Span]:
    """Each line from the beginning of one of its words to its end, half of a line on average."""
    at = 0
    for line in text.split("\n"):
        words = [found.start() for found in re.finditer(r"\S+", line)]
        if words:
            yield at + words[len(words) // 2], at + len(line.rstrip())
        at += len(line) + 1


def _blocks(text: str) -> Iterator[Span]:
    """Runs of lines indented further than the line before them, without the indentation of the first."""
    lines = text.split("\n")
    begins = list(itertools.accumulate((len(line) + 1 for line in lines), initial=0))
    indents = [len(line) - len(line.lstrip()) if line.strip() else -1 for line in lines]
    open_: list[tuple[int, int]] = []  # indentation of a block, its first line
    last = -1  # the last line that is not empty
    for number, indent in enumerate([*indents, 0]):
        if indent < 0:
            continue
        while open_ and (indent < open_[-1][0] or number == len(lines)):
            _, first = open_.pop()
            yield begins[first] + indents[first], begins[last] + len(lines[last].rstrip())
        if last >= 0 and number < len(lines) and indent > indents[last]:
            open_.append((indent, number))
        last = number
