"""Quality filters in the manner of The Stack v2 (arXiv 2402.19173, §2–3): each tells why to drop a text, or None.

All are pure functions of the text. Thresholds are the recipe's.
"""

from __future__ import annotations

import codecs
import re
import string
from itertools import chain

from openmercury.data.config import FilterRecipe
from openmercury.data.document import Document
from openmercury.data.functions import parse

_GENERATED = re.compile(
    r"auto(?:matically)?[-\s]?generated|generated (?:by|from|with|using|file|code)|@generated|do not (?:edit|modify)|"
    r"machine generated|this file was generated",
    re.IGNORECASE,
)
_ENCODED = re.compile(
    r"[A-Za-z0-9+/]{64}[A-Za-z0-9+/\n=]*|(?:(?:0x|\\x)?[0-9a-fA-F]{2}(?:,\s*|\s)){32,}|(?:\\x[0-9a-fA-F]{2}){16,}|"
    r"(?:\\u[0-9a-fA-F]{4}){16,}"
)
_BASE64_BYTES, _ESCAPE_BYTES = (
    bytes(97 if chr(code) in known else 32 for code in range(256))
    for known in (frozenset(string.ascii_letters + string.digits + "+/"), frozenset(string.hexdigits + "xu\\, \n\t\r"))
)
_MINIFIED = re.compile(r"[.-]min\.(?:js|mjs|cjs)$|[.-]bundle\.js$")
_ALPHANUMERIC = re.compile(r"\w+")
_DIGITS = re.compile(r"[0-9]+")
_GENERATED_LINES = 10


def reason(document: Document, recipe: FilterRecipe) -> str | None:
    """Why a document is not used, or None."""
    return (
        _by_lines(document.text, recipe)
        or _by_characters(document.text, recipe)
        or ("minified" if _MINIFIED.search(document.path) else None)
        or ("generated" if is_generated(document.text) else None)
        or _by_encoded(document.text, recipe)
    )


def _by_lines(text: str, recipe: FilterRecipe) -> str | None:
    if len(text) < recipe.min_characters:
        return "too short"
    lines = text.split("\n")
    if len(lines) > recipe.max_lines:
        return "too many lines"
    if max(map(len, lines)) > recipe.max_line:
        return "line too long"
    return "mean line too long" if len(text) / len(lines) > recipe.max_mean_line else None


def _by_characters(text: str, recipe: FilterRecipe) -> str | None:
    if _covered(_ALPHANUMERIC, text) < recipe.min_alphanumeric * len(text):
        return "few letters and digits"
    return "data: many digits" if _covered(_DIGITS, text) > recipe.max_digits * len(text) else None


def _covered(pattern: re.Pattern[str], text: str) -> int:
    return len("".join(pattern.findall(text)))


def is_generated(text: str) -> bool:
    """Whether one of the first lines says that a program wrote the file."""
    return _GENERATED.search("\n".join(text[:2_000].split("\n")[:_GENERATED_LINES])) is not None


def _by_encoded(text: str, recipe: FilterRecipe) -> str | None:
    if not _may_be_encoded(text.encode("ascii", "replace")):
        return None
    runs = [len(run) for run in _ENCODED.findall(text)]
    if max(chain(runs, (0,))) > recipe.max_encoded or sum(runs) > recipe.max_encoded_share * len(text):
        return "data: encoded bytes"
    return None


def _may_be_encoded(data: bytes) -> bool:
    """A quick look: what `_ENCODED` finds holds 64 bytes of one of these kinds in a row."""
    return any(b"a" * 64 in data.translate(kind) for kind in (_BASE64_BYTES, _ESCAPE_BYTES))


def syntax_reason(document: Document) -> str | None:
    """Why a document does not parse, or None; None too for languages without a parser at hand."""
    return "syntax error" if document.language == "python" and parse(document.text) is None else None


# --- bytes -----------------------------------------------------------------------------------------------------------

# What Python has beside character sets: no file of code is written so, and some take hours or make up surrogates.
_NO_CHARACTER_SETS = ("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7")
_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")


def decode(data: bytes, language: str) -> tuple[str, None] | tuple[None, str]:
    """The text of a file, with line ends as \\n, or why it has none.

    UTF-8, UTF-16 with its mark, and what a Python file's first two lines declare; guessing would make up characters.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data:
        return None, "binary"
    else:
        encoding = _declared(data) if language == "python" else "utf-8-sig"
    try:
        if codecs.lookup(encoding).name in _NO_CHARACTER_SETS:
            return None, "mixed or unknown encoding"
        text = data.decode(encoding)
    except (UnicodeError, LookupError):
        return None, "mixed or unknown encoding"
    if "\0" in text:
        return None, "binary"
    return text.replace("\r\n", "\n").replace("\r", "\n"), None


def _declared(data: bytes) -> str:
    for line in data.split(b"\n", 2)[:2]:
        found = _CODING.match(line)
        if found:
            name = found[1].decode().lower()
            return "utf-8-sig" if name.replace("_", "-") in ("utf-8", "utf8") else name
    return "utf-8-sig"
