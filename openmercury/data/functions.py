"""Documented Python functions of a file: signature, docstring, body, and the imports they need.

A function is self-contained when every name it uses is its own, a builtin, or imported from the standard library or
numpy/pandas: then it can be answered, and its source shown, without the file around it. Methods may also use `self`.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from openmercury.data.document import Document

Def: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_KNOWN_MODULES = frozenset(sys.stdlib_module_names) | {"numpy", "pandas"}
_BUILTINS = frozenset(dir(builtins))
_SKIPPED_DECORATORS = re.compile(
    r"overload|property|setter|deleter|deprecat|abstract|fixture|command|option|route|contextmanager|register|setup|"
    r"cached_|hook|jit|cython|compiles|classmethod|validator|filter|singledispatch|lru|task|test|skip"
)
_BOUND_WORDS = re.compile(
    r"\b(self|this (class|method|module|instance|object|transform|node|widget|artist|estimator|field|plugin|event|"
    r"command|test|package|axis|axes|index|distribution|operator|backend|dialect)|subclass\w*|superclass|overrid\w+|"
    r"mixin|internal\w*|private|deprecated|helper|hacks?|monkey\w*|backwards?|compat\w*|legacy|dummy|no-?op|"
    r"placeholder|hook|todo|fixme|xxx|constructor|initiali[sz]e|wrapper|shortcut|alias|convenience|see|test|tests|"
    r"called (by|when|from|on|after|before)|plugin|used (by|in|to|internally|for)|mock|singleton|sphinx|django|"
    r"sqlalchemy|sympy|mypy|networkx|scikit|scipy|matplotlib|twisted|astropy|setuptools|pygments|bokeh|dask|black|"
    r"jedi|parso|scrapy|celery|xarray|pandas|statsmodels|skimage|nltk|rich|tox|nox|pip|fonttools|seaborn|geopandas)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Function:
    """A function with a docstring. `header` runs from `def` to the colon; `body` is what follows the docstring."""

    id: str
    name: str
    header: str
    doc: str
    summary: str
    body: str
    source: str
    arguments: str
    imports: tuple[str, ...]
    self_contained: bool
    header_known: bool
    owner: str
    typed: bool


def functions(document: Document) -> Iterator[Function]:
    """Functions of a document with a usable docstring (summary of 20..300 characters) and a body of 2..60 lines."""
    tree = parse(document.text)
    if tree is None or "\t" in document.text:
        return
    lines = document.text.splitlines()
    imports = module_imports(tree)
    for node, owner in _definitions(tree):
        function = _read(node, owner, lines, imports, document.id)
        if function is not None:
            yield function


@functools.lru_cache(maxsize=1)
def parse(text: str) -> ast.Module | None:
    """The syntax tree, or None where the text is not Python of this version. Callers share it: it must not be changed.

    The last one is kept, since several stages look at the same text one after the other.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
            return None


def module_imports(tree: ast.Module) -> dict[str, str]:
    """Name → the import line that binds it, for absolute imports of known modules at the top of a file."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for item in node.names:
                if item.name.split(".")[0] in _KNOWN_MODULES:
                    bound = item.asname or item.name.split(".")[0]
                    found[bound] = f"import {item.name}" + (f" as {item.asname}" if item.asname else "")
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module not in (None, "__future__"):
            for item in node.names if str(node.module).split(".")[0] in _KNOWN_MODULES else ():
                line = f"from {node.module} import {item.name}" + (f" as {item.asname}" if item.asname else "")
                found[item.asname or item.name] = line
    return found


def free_names(node: Def) -> set[str]:
    """Names a function reads but does not bind, builtins left out."""
    read: set[str] = set()
    bound: set[str] = {node.name}
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            (read if isinstance(part.ctx, ast.Load) else bound).add(part.id)
        elif isinstance(part, ast.arg):
            bound.add(part.arg)
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(part.name)
        elif isinstance(part, ast.Import | ast.ImportFrom):
            bound.update((item.asname or item.name).split(".")[0] for item in part.names)
        elif isinstance(part, ast.ExceptHandler) and part.name:
            bound.add(part.name)
    for decorator in node.decorator_list:
        read -= {part.id for part in ast.walk(decorator) if isinstance(part, ast.Name)}
    return read - bound - _BUILTINS


def header_names(node: Def) -> set[str]:
    """Names that annotations and defaults need, builtins left out."""
    parts = [node.args, *([node.returns] if node.returns else [])]
    names = {part.id for root in parts for part in ast.walk(root) if isinstance(part, ast.Name)}
    return names - _BUILTINS


def summary_of(doc: str) -> str | None:
    """First sentence of a docstring as plain text, or None where it says too little without its surroundings."""
    paragraph = " ".join(doc.strip().split("\n\n")[0].split())
    match = re.match(r"(.+?(?<!e\.g)(?<!i\.e)(?<!etc)(?<!\bvs)(?<!cf)[.!?])(\s|$)", paragraph)
    sentence = clean_markup(match.group(1) if match else paragraph)
    if not 20 <= len(sentence) <= 300 or len(sentence.split()) < 4 or not sentence[0].isalpha():
        return None
    if re.search(r"https?:|>>>|\w::|[|@<>{}\\]|---|\*\*|==|[^\x20-\x7e]|:$|: -|\bif not\b.*\bNone$", sentence):
        return None
    if sentence.count("`") % 2 or sentence.count("(") != sentence.count(")") or _BOUND_WORDS.search(sentence):
        return None
    return sentence


def clean_markup(text: str) -> str:
    """Sphinx roles, doubled back quotes and emphasis as plain Markdown."""
    text = re.sub(r":[\w:+-]+:`~?([^`<]+?)(\s*<[^>]*>)?`", r"`\1`", text)
    text = text.replace("``", "`")
    return re.sub(r"(?<![\w*])\*(\w+)\*(?![\w*])", r"`\1`", text)


def _definitions(tree: ast.Module) -> Iterator[tuple[Def, str]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, ""
        elif isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield part, node.name


def _read(node: Def, owner: str, lines: list[str], imports: dict[str, str], document: str) -> Function | None:
    doc = ast.get_docstring(node, clean=False)
    if not doc or len(node.body) < 2 or node.name.startswith("__") or node.name.startswith("test"):
        return None
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any(_SKIPPED_DECORATORS.search(text.lower()) for text in decorators):
        return None
    start, opening, rest = node.lineno - 1, node.body[0].lineno - 1, node.body[1].lineno - 1
    end = node.end_lineno or rest
    if opening <= start or node.body[0].end_lineno is None or node.body[0].end_lineno > rest:
        return None
    doc, body = inspect.cleandoc(doc), "\n".join(lines[node.body[0].end_lineno : end])
    summary = summary_of(doc)
    if summary is None or not 2 <= len([line for line in body.splitlines() if line.strip()]) <= 60:
        return None
    is_method = owner != "" and "staticmethod" not in decorators
    source, header = _dedent(lines[start:end], node.col_offset), _dedent(lines[start:opening], node.col_offset)
    shift = node.col_offset
    body = "\n".join(line[shift:] if line[:shift].isspace() or not shift else line for line in body.splitlines())
    name = node.name.lstrip("_")
    if not name or parse(source) is None or re.search(r"#\s*(type:|noqa|pragma)", header):
        return None
    if name != node.name:
        source, header, body, doc = (
            re.sub(rf"(?<![\w.]){node.name}\b", name, text) for text in (source, header, body, doc)
        )
    names = free_names(node)
    return Function(
        id=f"{document}:{owner + '.' if owner else ''}{node.name}",
        name=name,
        header=header.rstrip(),
        doc=clean_markup(doc),
        summary=summary,
        body=body.strip("\n"),
        source=source,
        arguments=", ".join(argument_names(node)),
        imports=tuple(sorted({imports[part] for part in names if part in imports})),
        self_contained=all(part in imports for part in names),
        header_known=all(part in imports for part in header_names(node)),
        owner=owner if is_method else "",
        typed=node.returns is not None or any(arg.annotation for arg in node.args.args),
    )


def argument_names(node: Def) -> list[str]:
    """Names of the arguments, starred where they are variadic, without `self` and `cls`."""
    names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
    names += [f"*{node.args.vararg.arg}"] if node.args.vararg else []
    names += [arg.arg for arg in node.args.kwonlyargs]
    names += [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    return [name for name in names if name not in ("self", "cls")]


def _dedent(lines: list[str], shift: int) -> str:
    if shift == 0:
        return textwrap.dedent("\n".join(lines))
    return "\n".join(line[shift:] if line[:shift].isspace() or not line else line for line in lines)
