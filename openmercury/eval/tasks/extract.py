"""Code out of an answer."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator

# A block without its closing fence, as in a truncated answer, reaches to the end.
BLOCK = re.compile(r"^([ \t]*)```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def blocks(answer: str) -> list[str]:
    """The fenced blocks of an answer, indented against their fences."""
    found = BLOCK.findall(answer.replace("\r\n", "\n"))
    return [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def extract(answer: str, entry_point: str) -> str:
    """The code of an answer: the first block that defines the function, else the last block, else the whole text."""
    # dedent touches blank lines, too: code that has no indent is left as it is.
    found = [textwrap.dedent(block) if block.startswith((" ", "\t")) else block for block in blocks(answer)]
    if not found:
        return answer
    definition = re.compile(rf"^\s*(async\s+)?def\s+{re.escape(entry_point)}\s*\(", re.MULTILINE)
    return next((block for block in found if definition.search(block)), found[-1])


def sanitize(text: str, entry_point: str) -> str:
    """What evalplus 0.3.1 judges of a text: imports, and the definitions that the function needs.

    It looks at the longest run of lines that parses. Of its top level it keeps imports, and in their order classes,
    functions that return something and assignments: the first of each name, if `entry_point` mentions it, directly or
    through others. Decorated definitions are left out, as there.
    """
    code = longest_parsable(text)
    imports: list[str] = []
    definitions: dict[str, ast.stmt] = {}
    for node in _parse(code) or ():
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and node.module != "__future__"):
            imports.append(ast.get_source_segment(code, node) or "")
        elif (name := _defined(node)) is not None:
            definitions.setdefault(name, node)
    needed = _reachable(entry_point, definitions)
    kept = imports + [ast.get_source_segment(code, node) or "" for name, node in definitions.items() if name in needed]
    return "\n".join(kept).strip() or code


def longest_parsable(text: str) -> str:
    """The run of lines with the most that are not blank which parses; of equals, the first. Line 1 where none does."""
    lines = text.split("\n")
    filled = [0]
    for line in lines:
        filled.append(filled[-1] + bool(line.strip()))
    best, most = (0, 1), 0
    for begin in range(len(lines)):
        # From the longest down: the first that parses is this start's best, unless what is left cannot win.
        for end in range(len(lines), begin + 1, -1):
            if filled[end] - filled[begin] <= most:
                break
            if _parse("\n".join(lines[begin:end])) is not None:
                # Blank lines behind it add nothing: evalplus takes the shortest of equals.
                while end - 1 > begin + 1 and filled[end - 1] == filled[end]:
                    end -= 1
                best, most = (begin, end), filled[end] - filled[begin]
                break
    return "\n".join(lines[slice(*best)])


def _parse(code: str) -> list[ast.stmt] | None:
    """Top-level statements; None where the code is broken."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes, which are the model's matter
            return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the parser's ways to refuse what a model wrote
        return None


def _defined(node: ast.stmt) -> str | None:
    """The name that a statement defines, if evalplus would keep it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returns = any(isinstance(part, ast.Return) for part in ast.walk(node))
        return node.name if returns and not node.decorator_list else None
    if isinstance(node, ast.ClassDef):
        return None if node.decorator_list else node.name
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return target.id if isinstance(target, ast.Name) else None
    return None


def _reachable(entry_point: str, definitions: dict[str, ast.stmt]) -> set[str]:
    found, open_names = {entry_point}, [entry_point]
    while open_names:
        name = open_names.pop()
        fresh = set(_mentioned(definitions[name])) - found if name in definitions else set()
        found |= fresh
        open_names += fresh
    return found


def _mentioned(statement: ast.stmt) -> Iterator[str]:
    """Every identifier of a statement, attributes and keywords included."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Constant):
            continue
        for _, value in ast.iter_fields(node):
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, str):
                    yield from part.split(".")
