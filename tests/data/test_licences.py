"""Licences from expressions, metadata, texts and headers."""

from __future__ import annotations

import pytest

from openmercury.data import licences

ALLOW = frozenset({"MIT", "Apache-2.0", "BSD-3-Clause"})


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("MIT", True),
        ("mit", True),
        ("GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT OR GPL-2.0-only) AND Apache-2.0", True),
        ("MIT AND (GPL-2.0-only OR LGPL-2.1-only)", False),
        ("GPL-2.0-only OR MIT AND Apache-2.0", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("Apache-2.0 WITH LLVM-exception OR GPL-2.0-only", True),
        ("MIT or Apache-2.0", True),
        ("", False),
        ("MIT AND", False),
        ("(MIT", False),
        ("MIT )", False),
        ("unknown", False),
    ],
)
def test_expressions(expression: str, holds: bool) -> None:
    assert licences.allowed(expression, ALLOW) == holds


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Permission is hereby granted, free of\ncharge … shall be\n included in all copies", "MIT"),
        ("                Apache License\n          Version 2.0, January 2004", "Apache-2.0"),
        ("Redistribution and use in source and binary forms … to endorse or promote products\nderived", "BSD-3-Clause"),
        ("Redistribution and use in source and binary forms, with or without", "BSD-2-Clause"),
        ("GNU GENERAL PUBLIC LICENSE Version 3", "GPL-3.0-only"),
        ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 2.1", "LGPL-2.1-only"),
        ("Mozilla Public License Version 2.0", "MPL-2.0"),
        ("All rights reserved by the firm.", "unknown"),
    ],
)
def test_texts(text: str, name: str) -> None:
    assert licences.by_text(text) == name


@pytest.mark.parametrize(
    ("metadata", "expression"),
    [
        ("License-Expression: MIT OR Apache-2.0\nLicense: GPL", "MIT OR Apache-2.0"),
        ("Classifier: License :: OSI Approved :: MIT License\nLicense: GPL", "MIT"),
        ("Classifier: License :: OSI Approved\nLicense: Apache License 2.0", "Apache-2.0"),
        ("Classifier: License :: OSI Approved :: GNU General Public License (GPL)", "unknown"),
        (
            "Classifier: License :: OSI Approved :: MIT License\nClassifier: License :: OSI Approved :: BSD License",
            "BSD-3-Clause AND MIT",
        ),
        ("License: UNKNOWN", ""),
        ("Name: p", ""),
    ],
)
def test_metadata(metadata: str, expression: str) -> None:
    assert licences.from_metadata(f"{metadata}\n\nText") == expression


def test_package_json() -> None:
    assert licences.from_package_json({"license": "(MIT OR Apache-2.0)"}) == "(MIT OR Apache-2.0)"
    assert licences.from_package_json({"license": {"type": "ISC"}}) == "ISC"
    assert licences.from_package_json({"license": "SEE LICENSE IN file"}) == "unknown"
    assert licences.from_package_json({}) == ""


def test_headers() -> None:
    assert licences.by_header("/* SPDX-License-Identifier: GPL-2.0 OR MIT */\nint x;") == "GPL-2.0 OR MIT"
    assert licences.by_header("# under the GNU General Public License\n") == "GPL"
    assert licences.by_header("# under the terms of the LGPL\n") == "GPL"
    assert licences.by_header("x = 1\n" * 1000 + "# GPL") is None


def test_the_nearest_folder_speaks() -> None:
    folders = licences.Folders("own")
    assert folders.of("a.py") == "own"
    folders.add_file("LICENSE", "Apache License Version 2.0")
    folders.add_file(
        "lib/LICENSE-MIT", "Permission is hereby granted, free of charge … shall be included in all copies"
    )
    folders.add_file("lib/LICENSE-APACHE", "Apache License Version 2.0")
    folders.add_file("lib/strange/COPYING", "You may look at this.")
    assert folders.of("src/a.py") == "Apache-2.0"
    assert folders.of("lib/deep/a.rs") == "Apache-2.0 OR MIT"
    assert folders.of("lib/strange/a.rs") == "unknown"
    folders.declare("", "MIT")
    assert folders.of("a.py") == "MIT"


@pytest.mark.parametrize(
    "name", ["LICENSE", "licence.txt", "COPYING.LESSER", "LICENSE-MIT", "mit-license.md", "UNLICENSE"]
)
def test_names_of_licence_files(name: str) -> None:
    assert licences.is_licence_file(f"a/{name}")
    assert not licences.is_licence_file("a/license.py")
    assert not licences.is_licence_file("a/licenses/x.txt")


def test_brackets_without_end_are_no_licence() -> None:
    assert not licences.allowed("(" * 5_000 + "MIT" + ")" * 5_000, frozenset({"MIT"}))
