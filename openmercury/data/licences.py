"""Licences as SPDX expressions: from declared metadata, from the text of LICENSE files, from headers.

What is not recognised is `UNKNOWN`, which no allow-list holds. This is a filter for training data, not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.parser import Parser

UNKNOWN = "unknown"
_FILE = re.compile(r"(?:un)?licen[cs]e(?:[-._].*)?|copying(?:[-._].*)?|.*[-._]licen[cs]e(?:\.(?:txt|md|rst))?", re.I)
_CHOICE = re.compile(
    r"licen[cs]e-(?:mit|apache|bsd|zlib|isc|unlicense|boost)[\w.-]*", re.I
)  # as Rust's crates name them
_CODE = re.compile(r"\.(?:py|js|ts|java|c|h|cc|cpp|hpp|go|rs|php|sh|sql|json|html|css)$", re.I)
_HEAD = 4_000
_SPDX_HEADER = re.compile(r"SPDX-License-Identifier:\s*([\w.+() -]*[\w.+)])")
_COPYLEFT = re.compile(r"\b(?:[AL]?GPL|(?:GNU )?(?:Affero |Lesser )?General Public Licen[sc]e)", re.I)

# What a licence's text alone says, lower case, words only; the first line whose phrases all occur names it.
_TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGPL-3.0-only", ("gnu affero general public license", "version 3")),
    ("LGPL-3.0-only", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1-only", ("gnu lesser general public license", "version 2 1")),
    ("GPL-3.0-only", ("gnu general public license", "version 3")),
    ("GPL-2.0-only", ("gnu general public license", "version 2")),
    ("MPL-2.0", ("mozilla public license", "2 0")),
    ("EPL-2.0", ("eclipse public license", "2 0")),
    ("CC-BY-NC-4.0", ("creative commons", "noncommercial")),
    ("Apache-2.0", ("apache license", "version 2 0")),
    ("BSL-1.0", ("boost software license", "1 0")),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("Unlicense", ("free and unencumbered software released into the public domain",)),
    ("CC0-1.0", ("cc0 1 0 universal",)),
    ("CC-BY-4.0", ("creative commons attribution 4 0",)),
    ("BSD-4-Clause", ("redistribution and use in source and binary forms", "all advertising materials")),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote products derived")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    (
        "MIT-0",
        (
            "permission is hereby granted free of charge",
            "without limitation the rights to use copy modify merge "
            "publish distribute sublicense and or sell copies of the software and to permit persons to whom the "
            "software is furnished to do so the software is provided",
        ),
    ),
    ("MIT", ("permission is hereby granted free of charge", "shall be included in all copies")),
    (
        "0BSD",
        (
            "permission to use copy modify and or distribute this software for any purpose with or without fee is "
            "hereby granted the software is provided",
        ),
    ),
    ("ISC", ("permission to use copy modify and", "distribute this software for any purpose with or without fee")),
    ("Zlib", ("this software is provided as is", "altered source versions must be plainly marked")),
    ("HPND", ("permission to use copy modify and distribute this software and its documentation for any purpose",)),
)
# How people name licences in metadata: lower-case words → SPDX.
_NAMES = {
    "mit": "MIT", "mit license": "MIT", "the mit license": "MIT", "expat": "MIT", "mit no attribution license": "MIT-0",
    "bsd": "BSD-3-Clause", "bsd license": "BSD-3-Clause", "new bsd": "BSD-3-Clause", "new bsd license": "BSD-3-Clause",
    "modified bsd license": "BSD-3-Clause", "bsd 3 clause": "BSD-3-Clause", "3 clause bsd": "BSD-3-Clause",
    "bsd 3 clause license": "BSD-3-Clause", "3 clause bsd license": "BSD-3-Clause", "bsd 2 clause": "BSD-2-Clause",
    "2 clause bsd": "BSD-2-Clause", "simplified bsd": "BSD-2-Clause", "bsd 2 clause license": "BSD-2-Clause",
    "apache": "Apache-2.0", "apache 2": "Apache-2.0", "apache 2 0": "Apache-2.0", "apache license 2 0": "Apache-2.0",
    "apache software license": "Apache-2.0", "apache license": "Apache-2.0", "apache2": "Apache-2.0",
    "apache license version 2 0": "Apache-2.0", "apache software license 2 0": "Apache-2.0", "asl 2 0": "Apache-2.0",
    "apache 2 0 license": "Apache-2.0", "isc": "ISC", "isc license": "ISC", "isc license iscl": "ISC", "iscl": "ISC",
    "psf": "PSF-2.0", "psfl": "PSF-2.0", "python software foundation license": "PSF-2.0", "unlicense": "Unlicense",
    "the unlicense unlicense": "Unlicense", "the unlicense": "Unlicense", "zlib": "Zlib",
    "zlib libpng license": "Zlib", "boost software license 1 0 bsl 1 0": "BSL-1.0", "public domain": "Unlicense",
    "historical permission notice and disclaimer hpnd": "HPND", "mozilla public license 2 0 mpl 2 0": "MPL-2.0",
    "mpl 2 0": "MPL-2.0", "mpl": "MPL-2.0", "cc0 1 0 universal cc0 1 0 public domain dedication": "CC0-1.0",
    "academic free license afl": "AFL-3.0", "zope public license": "ZPL-2.1",
}  # fmt: skip
_SPDX_NAMES = {
    name.lower(): name
    for name in (*(spdx for spdx, _ in _TEXTS), *_NAMES.values(), "BlueOak-1.0.0", "Python-2.0", "WTFPL", "CC-BY-3.0")
}


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def is_licence_file(path: str) -> bool:
    """Whether a file's name says that it holds a licence."""
    name = path.rsplit("/", 1)[-1]
    return _FILE.fullmatch(name) is not None and _CODE.search(name) is None


def by_text(text: str) -> str:
    """SPDX name of a licence from its own text, or UNKNOWN."""
    told = _words(text[:20_000])
    return next((name for name, phrases in _TEXTS if all(phrase in told for phrase in phrases)), UNKNOWN)


def by_name(name: str) -> str:
    """SPDX expression of what metadata call a licence: an expression as it is, a usual name, or UNKNOWN."""
    name = " ".join(name.split())
    if name.lower() in _SPDX_NAMES:
        return _SPDX_NAMES[name.lower()]
    if re.search(r"\s(?:OR|AND|WITH)\s", name) or name.startswith("("):
        return name
    return _NAMES.get(_words(name), by_text(name) if len(name) > 200 else UNKNOWN)


def by_header(text: str) -> str | None:
    """SPDX expression that the head of a file declares; "GPL" where it names one of that family; else None."""
    head = text[:_HEAD]
    found = _SPDX_HEADER.search(head)
    if found:
        return found[1].strip()
    return "GPL" if _COPYLEFT.search(head) else None


def allowed(expression: str, allow: frozenset[str]) -> bool:
    """Whether licences of `allow` alone satisfy an SPDX expression; exceptions (WITH) only add rights."""
    known = {name.lower() for name in allow}
    tokens = re.findall(r"[()]|[^\s()]+", expression)

    def alternatives(at: int) -> tuple[bool, int]:
        holds, at = parts(at)
        while at < len(tokens) and tokens[at].upper() == "OR":
            other, at = parts(at + 1)
            holds = holds or other
        return holds, at

    def parts(at: int) -> tuple[bool, int]:
        holds, at = one(at)
        while at < len(tokens) and tokens[at].upper() == "AND":
            other, at = one(at + 1)
            holds = holds and other
        return holds, at

    def one(at: int) -> tuple[bool, int]:
        if at < len(tokens) and tokens[at] == "(":
            holds, at = alternatives(at + 1)
            return holds, at + 1
        holds = at < len(tokens) and tokens[at].lower() in known
        at += 1
        return holds, at + 2 if at < len(tokens) and tokens[at].upper() == "WITH" else at

    try:
        holds, end = alternatives(0)
    except RecursionError:  # brackets in brackets: nobody's licence
        return False
    return holds and end == len(tokens)


def from_metadata(text: str) -> str:
    """SPDX expression that a Python package's METADATA or PKG-INFO declares; "" where it declares nothing.

    Read in this order: the SPDX expression, the classifiers (all of them), the free field.
    """
    head = Parser().parsestr(text, headersonly=True)
    if head.get("License-Expression"):
        return by_name(str(head["License-Expression"]))
    told = [str(value) for value in head.get_all("Classifier", [])]
    names = [value.split("::")[-1].strip() for value in told if value.startswith("License ::")]
    names = [name for name in names if name not in ("OSI Approved", "Other/Proprietary License")]
    if names:
        return join(map(by_name, names))
    free = str(head.get("License", "")).strip()
    return by_name(free) if free and free.upper() != "UNKNOWN" else ""


def from_package_json(package: Mapping[str, object]) -> str:
    """SPDX expression of an npm package.json; "" where it declares nothing."""
    told = package.get("license")
    if isinstance(told, dict):
        told = told.get("type")
    return by_name(told) if isinstance(told, str) and told else ""


def join(names: Iterable[str], word: str = "AND") -> str:
    """One expression of several licences that hold together (AND) or at choice (OR)."""
    kept = sorted(set(names))
    return kept[0] if len(kept) == 1 else f" {word} ".join(f"({name})" if " " in name else name for name in kept)


@dataclass
class Folders:
    """Which licence holds in which folder: the nearest one above a file that says anything, else `default`."""

    default: str = ""
    declared: dict[str, list[str]] = field(default_factory=dict)
    found: dict[str, dict[str, str]] = field(default_factory=dict)

    def declare(self, folder: str, expression: str) -> None:
        """Metadata that speak for a folder ("" is the root); they go before a LICENSE file beside them."""
        if expression:
            self.declared.setdefault(folder, []).append(expression)

    def add_file(self, path: str, text: str) -> None:
        """A LICENSE file speaks for the folder it lies in."""
        folder, _, name = path.rpartition("/")
        self.found.setdefault(folder, {})[name] = by_text(text)

    def of(self, path: str) -> str:
        """The expression that holds for a file."""
        folder = path
        while folder:
            folder = folder.rpartition("/")[0]
            if folder in self.declared:
                return join(self.declared[folder])
            if folder in self.found:
                names = self.found[folder]
                choice = len(names) > 1 and all(map(_CHOICE.fullmatch, names))
                return join(names.values(), "OR" if choice else "AND")
        return self.default
