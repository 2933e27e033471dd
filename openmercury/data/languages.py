"""The language of a file: by its extension, by its shebang, and for the few that share an extension by its text."""

from __future__ import annotations

import re

EXTENSIONS = {
    "python": ("py", "pyi", "pyw"),
    "javascript": ("js", "jsx", "mjs", "cjs"),
    "typescript": ("ts", "tsx", "mts", "cts"),
    "java": ("java",),
    "c": ("c", "h"),
    "cpp": ("cc", "cpp", "cxx", "hh", "hpp", "hxx", "ipp", "tpp"),
    "go": ("go",),
    "rust": ("rs",),
    "php": ("php", "phtml"),
    "bash": ("sh", "bash"),
    "sql": ("sql",),
    "markdown": ("md", "markdown"),
}
LANGUAGES = tuple(EXTENSIONS)
_BY_EXTENSION = {extension: language for language, known in EXTENSIONS.items() for extension in known}
_ALIASES = {"c++": "cpp", "golang": "go", "shell": "bash", "sh": "bash", "js": "javascript", "ts": "typescript"}
_SHEBANGS = {"python": "python", "bash": "bash", "sh": "bash", "dash": "bash", "node": "javascript", "php": "php"}
_SHEBANG = re.compile(r"#!\s*(?:/usr/bin/env\s+(?:-\S+\s+)*)?(?:\S*/)?([a-z]+)[\d.]*\b")
_CPP = re.compile(r"^\s*(?:class\s+\w+[^;]*\{|template\s*<|namespace\s+\w*|using\s+\w|public:|private:)|\bstd::", re.M)


def by_name(path: str) -> str | None:
    """The language that the extension of a path tells, or None."""
    name = path.rsplit("/", 1)[-1]
    return _BY_EXTENSION.get(name.rsplit(".", 1)[-1].lower()) if "." in name[1:] else None


def needs_shebang(path: str) -> bool:
    """Whether only the first line can tell: the name has no extension."""
    return "." not in path.rsplit("/", 1)[-1]


def by_shebang(text: str) -> str | None:
    """The language that the first line names as its interpreter, or None."""
    found = _SHEBANG.match(text)
    return _SHEBANGS.get(found[1]) if found else None


def by_label(label: str) -> str | None:
    """The language that a data set calls `label`, or None."""
    name = label.strip().lower()
    name = _ALIASES.get(name, name)
    return name if name in EXTENSIONS else None


def detect(path: str, text: str) -> str | None:
    """The language of a file, or None: extension, then shebang; headers of C++ and other uses of .ts by their text."""
    if needs_shebang(path):
        return by_shebang(text)
    language = by_name(path)
    if language == "c" and path.lower().endswith(".h") and _CPP.search(text):
        return "cpp"
    if language == "typescript" and text.lstrip().startswith("<"):  # Qt keeps translations in XML files named .ts
        return None
    return language
