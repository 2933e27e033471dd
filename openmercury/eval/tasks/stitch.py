"""From a chat answer and a problem's tests to one program, in the languages of MultiPL-E.

An answer may repeat the prompt's includes and signature, add helpers, wrap the function in a class, go on with a main()
or examples, or give the body alone. What defines something is kept, in its order; what would run is not.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

# A block without its closing fence, as in a truncated answer, reaches to the end.
BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
# Comments, strings, and regular expressions where JavaScript can have one.
_TEXT = re.compile(
    r"""//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])*'""", re.DOTALL
)  # fmt: skip
_REGEX = r"(?:(?<=[(,=:\[!&|?{};\n])|(?<=return))[ ]*/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/"
_SCRIPT_TEXT = re.compile(_TEXT.pattern + r"|`(?:\\.|[^`\\])*`|" + _REGEX, re.DOTALL)
_PHP_TEXT = re.compile(_TEXT.pattern + r"|\#(?!\[)[^\n]*", re.DOTALL)
_TEXTS = {"cpp": _TEXT, "java": _TEXT, "js": _SCRIPT_TEXT, "ts": _SCRIPT_TEXT, "php": _PHP_TEXT}

# Definitions and not calls: a body alone may call its function again.
_TYPED = r"[\w>\]&*]\s+[&*]*{name}\s*\([^;{{}}]*\)[^;{{}}()]*\{{"
_SCRIPT = (
    r"\b(?:function\s*\*?|const|let|var)\s+{name}\b|^\s+(?:(?:static|async|public)\s+)*{name}\s*\([^;{{}}]*\)[^;()]*\{{"
)
_DEFINITION = {
    "cpp": _TYPED,
    "java": _TYPED,
    "js": _SCRIPT,
    "ts": _SCRIPT,
    "php": r"\bfunction\s+&?{name}\s*\(",
    "bash": r"^(?:function\s+{name}\b|{name}\s*\(\s*\))",
}
# Top-level pieces of an answer that are left out: those that run, and those that define a name of the tests.
_SCRIPT_LEFT_OUT = (
    r"(?!(?:declare|abstract|async|function|class|const|let|var|type|interface|enum|namespace|@)\b)"
    r"|(?:async\s+)?(?:function\s*\*?|const|let|var)\s+(?:test|main)\b|(?:const|let|var)\s+(?:\{[^}]*)?\bassert\b"
)
_LEFT_OUT = {
    "cpp": r"(?:int|auto|void|signed)\s+main\s*\(",
    "js": _SCRIPT_LEFT_OUT,
    "ts": _SCRIPT_LEFT_OUT + r"|declare\s+var\s+require\b",
    "php": r"(?!(?:abstract|final|function|class|interface|trait|enum|const|define)\b|\$\w+\s*=)"
    r"|function\s+(?:test|candidate|main)\b",
}
_BASH_KEPT = re.compile(r"#|(?:declare|readonly|export|local|typeset|shopt)\b|\w+\+?=")
_BASH_FUNCTION = re.compile(r"function\s+\w+|\w+\s*\(\s*\)")
_JAVA_CLASS = re.compile(r"(?:\b(?:public|final|abstract|static)\s+)*\bclass\s+(\w+)[^;{}]*\{")
_JAVA_MAIN = re.compile(r"(?:\b(?:public|static|final)\s+)+void\s+main\s*\([^;{}]*\)[^;{}]*\{")
_JAVA_HEAD = re.compile(r"^[ \t]*(?:import|package)\s[^;\n]*;", re.MULTILINE)
_JAVA_PUBLIC = re.compile(r"^public\s+(?=(?:(?:final|abstract)\s+)*(?:class|interface|enum|record)\b)", re.MULTILINE)


def stitch(language: str, prompt: str, answer: str, tests: str) -> str:
    """A program that ends well if the answer's function passes the tests."""
    name = entry_point(prompt)
    code = pick(language, name, answer.replace("\r\n", "\n").replace("\r", "\n"))
    if language == "php":
        code = re.sub(r"\A\s*<\?(?:php)?|\?>\s*\Z", "", code)
    defined = [match.start() for match in _definition(language, name).finditer(mask(language, code))]
    closed = tests.lstrip().startswith("}")
    if not defined:
        return prompt + _body(language, code) + ("\n" if closed else "\n}\n") + tests
    tail = tests.lstrip().removeprefix("}") if closed else tests
    if language == "java":
        return _java(prompt, code, defined[0], tail)
    if language == "bash":
        return "#!/bin/bash\n" + "".join(_bash_kept(code)) + tail
    if all(_depth(language, code, place) for place in defined):  # in a class: its body under the prompt's signature
        return prompt + _body(language, code, name) + ("\n" if closed else "\n}\n") + tests
    kept = "".join(_kept(language, code))
    if language == "cpp":  # or std's function of the same name is meant too, once an answer says `using namespace std`
        tail = tail.replace(f"candidate = {name};", f"candidate = ::{name};")
    return _prelude(language, prompt, kept) + kept + "\n" + tail


def entry_point(prompt: str) -> str:
    """The name of the function that a prompt ends with the signature of."""
    found = re.search(r"(\w+)\s*\(", prompt.rstrip().rpartition("\n")[2])
    assert found is not None, "MultiPL-E's prompts end with a signature"
    return found[1]


def pick(language: str, name: str, answer: str) -> str:
    """The code of an answer: the first block that defines the function, else the first block, else the whole text."""
    blocks = [textwrap.dedent(block) for block in BLOCK.findall(answer)]
    wanted = _definition(language, name)
    return next((block for block in blocks if wanted.search(mask(language, block))), (blocks or [answer])[0])


def mask(language: str, code: str) -> str:
    """The code with comments, strings and regular expressions blanked, each character in its place."""
    if language not in _TEXTS:
        return code
    return _TEXTS[language].sub(lambda match: re.sub(r"[^\n]", " ", match[0]), code)


def pieces(language: str, code: str) -> Iterator[tuple[str, str]]:
    """The top-level pieces of a code and their masked text: each begins with a line that no bracket is open at."""
    begin = depth = place = 0
    masked = mask(language, code)
    for line in masked.splitlines(keepends=True):
        if depth <= 0 and line[0] not in " \t\n{})]" and place > begin:
            yield code[begin:place], masked[begin:place]
            begin = place
        depth += sum((mark in "([{") - (mark in ")]}") for mark in line)
        place += len(line)
    if place > begin:
        yield code[begin:place], masked[begin:place]


def _definition(language: str, name: str) -> re.Pattern[str]:
    return re.compile(_DEFINITION[language].format(name=re.escape(name)), re.MULTILINE)


def _depth(language: str, code: str, place: int) -> int:
    """How many braces are open at a place."""
    before = mask(language, code)[:place]
    return before.count("{") - before.count("}")


def _close(masked: str, place: int) -> int:
    """Where the brace closes that is open at a place; the end of the code where it does not."""
    depth = 1
    for match in re.compile(r"[{}]").finditer(masked, place):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    return len(masked)


def _body(language: str, code: str, name: str | None = None) -> str:
    """The body of a function that `code` defines, or goes on with (no name), without its closing brace."""
    if language == "bash":
        return re.split(r"^\}", code, maxsplit=1, flags=re.MULTILINE)[0]
    masked, begin = mask(language, code), 0
    if name is not None:
        found = re.search(rf"\b{re.escape(name)}\s*\([^;{{}}]*\)[^;{{}}()]*\{{", masked)
        begin = found.end() if found else 0
    return code[begin : _close(masked, begin)]


def _kept(language: str, code: str) -> Iterator[str]:
    left_out = re.compile(_LEFT_OUT[language])
    for piece, masked in pieces(language, code):
        cut = 0
        if language in ("js", "ts") and (exported := re.match(r"export\s+(?:default\s+)?", masked)):
            cut = exported.end()
        if not masked.strip() or not left_out.match(masked[cut:].lstrip()):
            yield piece[cut:]


def _prelude(language: str, prompt: str, kept: str) -> str:
    """What the prompt defines beside the function, and the answer does not."""
    if language == "php":
        return "<?php\n"
    if language != "cpp":
        return ""
    masked, prelude = mask(language, kept), ""
    for piece, text in list(pieces(language, prompt))[:-1]:
        named = re.match(r"(?:union|struct|class)\s+(\w+)", text)
        if named is None or not re.search(rf"\b(?:union|struct|class)\s+{named[1]}\s*\{{", masked):
            prelude += piece
    return prelude


def _bash_kept(code: str) -> Iterator[str]:
    """Functions and assignments: those of several lines reach to the first closing bracket in column 0."""
    inside = False
    for line in code.splitlines():
        if inside:
            inside = line[:1] not in ("}", ")")
        elif _BASH_FUNCTION.match(line):
            inside = not line.rstrip().endswith("}")
        elif _BASH_KEPT.match(line):
            inside = line.rstrip().endswith("(")
        else:
            continue
        yield line + "\n"


def _java(prompt: str, code: str, place: int, tail: str) -> str:
    """The method and its neighbours as members of the class that the tests call, other classes before it."""
    masked = mask("java", code)
    outside, members = "", _JAVA_HEAD.sub("", code)
    for match in _JAVA_CLASS.finditer(masked):
        end = _close(masked, match.end())
        if _depth("java", code, match.start()) == 0 and match.end() <= place < end:
            outside = _JAVA_PUBLIC.sub("", _JAVA_HEAD.sub("", code[: match.start()] + code[end + 1 :]))
            members = re.sub(rf"\b{match[1]}\b", "Problem", code[match.end() : end])
    if (main := _JAVA_MAIN.search(mask("java", members))) is not None:
        members = members[: main.start()] + members[_close(mask("java", members), main.end()) + 1 :]
    heads = _JAVA_HEAD.findall(prompt) + [head for head in _JAVA_HEAD.findall(code) if "package" not in head]
    return "\n".join([*heads, outside, "class Problem {", members, tail])
