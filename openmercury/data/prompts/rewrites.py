"""Small changes to a function, each with its instruction and its result: what edits and merges are asked about.

A rewrite is made by rule from the syntax tree, so that before, after and instruction agree. Positions of names come
from the tree and are checked against the text: where they do not hold (inside f-strings of some versions), the rewrite
is not made. Only ASCII sources are changed, since the tree counts bytes.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from openmercury.data.functions import Def, Function, parse
from openmercury.data.prompts.prompt import pick, rank

MOST_LINES = 25  # of a body that is wrapped


@dataclass(frozen=True)
class Rewrite:
    """Code before and after a change, and the sentence that asks for it."""

    instruction: str
    before: str
    after: str


def rewrites(function: Function, code: str, seed: int) -> Iterator[Rewrite]:
    """Every rewrite that can be made of `code`, which holds the function, in an order that is a hash."""
    tree = parse(code)
    if tree is None or not code.isascii() or "\t" in code:
        return
    node = next((part for part in ast.walk(tree) if isinstance(part, Def) and part.name == function.name), None)
    if node is None or node.body[0].lineno <= node.lineno:
        return
    for make in sorted(_MAKERS, key=lambda make: rank(seed, "rewrite", make.__name__, function.id)):
        made = make(_Place(function, code, tree, node, seed))
        if made is not None and made[1] != code and parse(made[1]) is not None:
            yield Rewrite(made[0], code, made[1])


def hunks(before: str, after: str) -> list[tuple[int, int, int, int]]:
    """Changed runs of lines as (begin, end) before and (begin, end) after; those with one line between are one."""
    old, new = before.split("\n"), after.split("\n")
    found: list[tuple[int, int, int, int]] = []
    for tag, *run in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        begin, end, first, last = run
        if tag == "equal":
            continue
        if found and begin - found[-1][1] <= 1:
            found[-1] = (found[-1][0], end, found[-1][2], last)
        else:
            found.append((begin, end, first, last))
    return found


def elide(before: str, after: str, kept: str, context: int = 2) -> str:
    """`after`, with the comment `kept` in the place of unchanged runs of lines away from the changes."""
    new, shown, end = after.split("\n"), [], 0
    for _, _, first, last in hunks(before, after):
        begin = max(end, first - context)
        shown += _left_out(new, end, begin, kept) + new[begin:last]
        end = last
        follow = min(len(new), last + context)
        shown += new[end:follow]
        end = follow
    return "\n".join(shown + _left_out(new, end, len(new), kept))


def _left_out(lines: Sequence[str], begin: int, end: int, kept: str) -> list[str]:
    if end - begin < 2:
        return list(lines[begin:end])
    indent = next((line[: len(line) - len(line.lstrip())] for line in lines[begin:end] if line.strip()), "")
    return [indent + kept]


# --- the rules -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    function: Function
    code: str
    tree: ast.Module
    node: Def
    seed: int

    def chosen(self, options: Sequence[str], what: str) -> str:
        return pick(options, self.seed, what, self.function.id)

    @property
    def indent(self) -> str:
        return " " * self.node.body[0].col_offset

    @property
    def has_doc(self) -> bool:
        return ast.get_docstring(self.node) is not None

    @property
    def start(self) -> int:
        """Index of the line on which the body begins, behind the docstring."""
        first = self.node.body[0]
        return (first.end_lineno or first.lineno) if self.has_doc else first.lineno - 1

    @property
    def arguments(self) -> list[str]:
        names = [each.arg for each in (*self.node.args.posonlyargs, *self.node.args.args, *self.node.args.kwonlyargs)]
        return [name for name in names if name not in ("self", "cls")]

    def inserted(self, lines: Sequence[str], at: int | None = None) -> str:
        """The code with lines of the body's indentation before line `at`, by default where the body begins."""
        place = self.start if at is None else at
        old = self.code.split("\n")
        return "\n".join([*old[:place], *(self.indent + line if line else "" for line in lines), *old[place:]])


def _renamed(place: _Place, old: str, new: str) -> str | None:
    """The code with a variable renamed at every place where the tree has it."""
    spots = []
    for part in ast.walk(place.node):
        if old in (getattr(part, "id", None), getattr(part, "arg", None)) and isinstance(part, ast.Name | ast.arg):
            spots.append((part.lineno, part.col_offset))
        elif isinstance(part, ast.Global | ast.Nonlocal | ast.JoinedStr):
            return None
    return _replaced(place.code, spots, old, new)


def _replaced(code: str, spots: Sequence[tuple[int, int]], old: str, new: str) -> str | None:
    lines = code.split("\n")
    for row, column in sorted(spots, reverse=True):
        line = lines[row - 1]
        if line[column : column + len(old)] != old:
            return None
        lines[row - 1] = line[:column] + new + line[column + len(old) :]
    return "\n".join(lines) if len(spots) > 1 else None


_NAMES = (
    "value", "values", "items", "item", "data", "source", "target", "first", "second", "name", "key", "index", "count",
    "result", "total", "current", "text", "path", "options", "settings", "offset", "size", "entries", "element",
)  # fmt: skip


def _rename_variable(place: _Place) -> tuple[str, str] | None:
    names = {part.id for part in ast.walk(place.node) if isinstance(part, ast.Name)}
    local = sorted(
        {part.id for part in ast.walk(place.node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        | set(place.arguments)
    )
    free = [name for name in _NAMES if name not in names and name not in local]
    if not local or not free:
        return None
    old = place.chosen(local, "old")
    new = place.chosen((*free, f"{old}_value", f"new_{old}"), "new")
    after = _renamed(place, old, new)
    what = "parameter" if old in place.arguments else "variable"
    asked = place.chosen(
        (
            f"Rename the {what} `{old}` to `{new}`.",
            f"Use the name `{new}` instead of `{old}` for the {what}.",
            f"Change the {what} name {old} to {new} everywhere.",
        ),
        "asked",
    )
    return None if after is None else (asked, after)


def _rename_function(place: _Place) -> tuple[str, str] | None:
    old = place.function.name
    parts = old.split("_")
    camel = parts[0] + "".join(part.capitalize() for part in parts[1:])
    options = [f"compute_{old}", f"{old}_safe", f"{old}_impl", *([camel] if camel != old else [])]
    new = place.chosen(options, "function")
    line = place.code.split("\n")[place.node.lineno - 1]
    found = re.search(rf"\bdef {re.escape(old)}\b", line)
    if found is None:
        return None
    spots = [(place.node.lineno, found.end() - len(old))]
    spots += [
        (part.lineno, part.col_offset) for part in ast.walk(place.tree) if isinstance(part, ast.Name) and part.id == old
    ]
    after = _replaced(place.code, [*spots], old, new) if len(spots) > 1 else None
    if after is None:
        lines = place.code.split("\n")
        lines[place.node.lineno - 1] = line[: spots[0][1]] + new + line[spots[0][1] + len(old) :]
        after = "\n".join(lines)
    return f"Rename the function `{old}` to `{new}`.", after


_PARAMETERS = (
    ("verbose", "False", "print progress when it is true", ("if verbose:", '    print("{name}: start")')),
    ("logger", "None", "log a debug message if it is given", ("if logger is not None:", '    logger.debug("{name}")')),
    ("dry_run", "False", "return None at once when it is true", ("if dry_run:", "    return None")),
    ("strict", "False", "raise ValueError on a first argument of None when it is true",
     ("if strict and {argument} is None:", '    raise ValueError("{argument} is missing")')),
    ("callback", "None", "call it with the first argument before anything else",
     ("if callback is not None:", "    callback({argument})")),
)  # fmt: skip


def _add_parameter(place: _Place) -> tuple[str, str] | None:
    arguments, node = place.arguments, place.node
    if node.args.kwarg is not None or not arguments:
        return None
    number = rank(place.seed, "parameter", place.function.id) % len(_PARAMETERS)
    name, default, does, lines = _PARAMETERS[number]
    header = "\n".join(place.code.split("\n")[node.lineno - 1 : node.body[0].lineno - 1])
    found = re.search(r"(,?)(\s*)\)(\s*->[^:]+)?:\s*$", header)
    if name in arguments or found is None:
        return None
    spaced = node.args.kwonlyargs or not (node.args.args or node.args.posonlyargs)
    equals = " = " if place.function.typed and rank(place.seed, "typed", place.function.id) % 2 else "="
    hint = {"False": ": bool"}.get(default, "") if equals == " = " else ""
    equals = equals if hint else "="
    parameter = f"{name}{hint}{equals}{default}"
    if spaced and not node.args.vararg and not node.args.kwonlyargs:
        return None
    glue = f", {parameter}"
    if found[1] and "\n" in found[2]:
        glue = f",{_line_of(header, found.start())}{parameter},"
    changed = header[: found.start()] + glue + header[found.start() + len(found[1]) :]
    body = [line.format(name=place.function.name, argument=arguments[0]) for line in lines]
    filled = place.inserted(body).split("\n")
    filled[node.lineno - 1 : node.body[0].lineno - 1] = changed.split("\n")
    asked = place.chosen(
        (
            f"Add a parameter `{name}` with default {default}: {does}.",
            f"Add an optional parameter `{name}={default}` to `{place.function.name}` and {does}.",
        ),
        "asked",
    )
    return asked, "\n".join(filled)


def _line_of(header: str, end: int) -> str:
    """A line break and the indentation of the line that ends at `end`."""
    line = header[:end].rsplit("\n", 1)[-1]
    return "\n" + line[: len(line) - len(line.lstrip())]


def _add_docstring(place: _Place) -> tuple[str, str] | None:
    if place.has_doc:
        return None
    summary = place.function.summary.rstrip(".") + "."
    if len(summary) > 100:
        return None
    return f'Add the docstring """{summary}""" to the function.', place.inserted([f'"""{summary}"""'])


def _drop_docstring(place: _Place) -> tuple[str, str] | None:
    if not place.has_doc:
        return None
    first = place.node.body[0]
    lines = place.code.split("\n")
    rest = lines[first.end_lineno or first.lineno :]
    return "Remove the docstring.", "\n".join(
        [*lines[: first.lineno - 1], *(rest[1:] if not rest[0].strip() else rest)]
    )


def _check_argument(place: _Place) -> tuple[str, str] | None:
    if not place.arguments:
        return None
    name = place.chosen(place.arguments, "checked")
    kinds = (
        (f"Raise a ValueError if `{name}` is None.", f"if {name} is None:", f'    raise ValueError("{name} is None")'),
        (f"Return None if `{name}` is empty.", f"if not {name}:", "    return None"),
        (f"Raise a TypeError if `{name}` is a string.", f"if isinstance({name}, str):",
         f'    raise TypeError("{name} must not be a string")'),
    )  # fmt: skip
    asked, *lines = kinds[rank(place.seed, "kind", place.function.id) % len(kinds)]
    return asked, place.inserted(lines)


def _wrap(place: _Place) -> tuple[str, str] | None:
    lines = place.code.split("\n")
    end = place.node.end_lineno or len(lines)
    body = lines[place.start : end]
    if (
        any(isinstance(part, ast.Constant) and "\n" in str(part.value) for part in ast.walk(place.node))
        or len(body) > MOST_LINES
    ):
        return None
    inner = [f"    {line}" if line.strip() else line for line in body]
    while inner and not inner[0].strip():
        inner.pop(0)
    error = place.chosen(("RuntimeError", "ValueError"), "error")
    tail = [
        f"{place.indent}except Exception as error:",
        f'{place.indent}    raise {error}("{place.function.name} failed") from error',
    ]
    after = "\n".join([*lines[: place.start], f"{place.indent}try:", *inner, *tail, *lines[end:]])
    return f"Wrap the body in try/except and re-raise any exception as a {error} with its cause.", after


def _add_logging(place: _Place) -> tuple[str, str] | None:
    if "logger" in place.code or "logging" in place.code or place.node.col_offset:
        return None
    lines = place.inserted([f'logger.debug("{place.function.name} called")']).split("\n")
    last = max(
        (part.end_lineno or 0 for part in place.tree.body if isinstance(part, ast.Import | ast.ImportFrom)), default=0
    )
    head = [*lines[:last], "import logging", "", "logger = logging.getLogger(__name__)"]
    rest = lines[last:]
    return (
        f"Add a module-level logger and log a debug message when `{place.function.name}` is called.",
        "\n".join([*head, *([] if rest and not rest[0].strip() else ["", ""]), *rest]),
    )


def _lift_constant(place: _Place) -> tuple[str, str] | None:
    found = [
        part
        for part in ast.walk(place.node)
        if isinstance(part, ast.Constant) and type(part.value) in (int, float) and part.value not in (0, 1, 2, -1)
        and part.lineno > place.start
    ]  # fmt: skip
    if not found or place.node.col_offset or any(isinstance(part, ast.JoinedStr) for part in ast.walk(place.node)):
        return None
    value = found[rank(place.seed, "constant", place.function.id) % len(found)]
    text = ast.get_source_segment(place.code, value) or ""
    name = place.chosen(("DEFAULT_LIMIT", "FACTOR", "THRESHOLD", "MAX_VALUE", "SCALE", "STEP"), "constant name")
    spots = [(part.lineno, part.col_offset) for part in found if ast.get_source_segment(place.code, part) == text]
    lines = place.code.split("\n")
    for row, column in sorted(spots, reverse=True):
        line = lines[row - 1]
        lines[row - 1] = line[:column] + name + line[column + len(text) :]
    first = place.node.decorator_list[0].lineno if place.node.decorator_list else place.node.lineno
    lines[first - 1 : first - 1] = [f"{name} = {text}", "", ""]
    return f"Move the number {text} into a module-level constant `{name}`.", "\n".join(lines)


_MAKERS = (
    _rename_variable, _rename_function, _add_parameter, _add_docstring, _drop_docstring, _check_argument, _wrap,
    _add_logging, _lift_constant,
)  # fmt: skip
