"""Filters, scrubbing and languages: pure functions of one text."""

from __future__ import annotations

import sys

import pytest

from openmercury.data import filters, languages, scrub
from openmercury.data.config import FilterRecipe
from openmercury.data.document import Document
from openmercury.errors import DataError

GOOD = "def area(width, height):\n    return width * height\n\n\nprint(area(2, 3))\n"


def reason(text: str, path: str = "a.py", **given: object) -> str | None:
    return filters.reason(Document("id", text, "python", "MIT", path), FilterRecipe.model_validate(given))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GOOD, None),
        ("x = 1\n", "too short"),
        ("x = 1\n" * 30_000, "too many lines"),
        (GOOD + "#" * 1_001, "line too long"),
        (("y" * 150 + "\n") * 20, "mean line too long"),
        (GOOD + "+-*/ ()[]\n" * 40, "few letters and digits"),
        (GOOD + "1234567, 7654321,\n" * 40, "data: many digits"),
        (f"# This file was automatically generated\n{GOOD}", "generated"),
        (GOOD + ("QUJD" * 20 + "\n") * 20, "data: encoded bytes"),
        ("x = [" + "0x1f, 0xff, 0x00, 0xab,\n" * 60 + "]\n", "data: encoded bytes"),
        ('a = "' + "\\x1f\\xff" * 12 + '"\nb = "' + "\\xaa\\x00" * 12 + '"\n', "data: encoded bytes"),
        (GOOD + 'key = "QUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJDQUJD"\n', None),
    ],
)
def test_reasons(text: str, why: str | None) -> None:
    assert reason(text) == why


def test_minified_by_name() -> None:
    assert reason(GOOD, "lib/jquery.min.js") == "minified"
    assert reason(GOOD, "lib/administration.js") is None


def test_thresholds_are_the_recipes() -> None:
    assert reason(GOOD, max_line=10) == "line too long"
    assert reason("x = 1\n", min_characters=0) is None


def test_syntax() -> None:
    assert filters.syntax_reason(Document("", "def (:", "python", "", "")) == "syntax error"
    assert filters.syntax_reason(Document("", GOOD, "python", "", "")) is None
    assert filters.syntax_reason(Document("", "def (:", "rust", "", "")) is None


@pytest.mark.parametrize(
    ("data", "language", "text", "why"),
    [
        (b"a\r\nb\rc\n", "c", "a\nb\nc\n", None),
        ("\ufeffä".encode(), "c", "ä", None),
        ("ä".encode("utf-16"), "c", "ä", None),
        ("# coding: latin-1\nä".encode("latin-1"), "python", "# coding: latin-1\nä", None),
        ("ä".encode("latin-1"), "python", None, "mixed or unknown encoding"),
        ("ä".encode() + "ä".encode("latin-1"), "c", None, "mixed or unknown encoding"),
        (b"# coding: no-such-thing\n", "python", None, "mixed or unknown encoding"),
        (b"a\0b", "c", None, "binary"),
    ],
)
def test_decode(data: bytes, language: str, text: str | None, why: str | None) -> None:
    assert filters.decode(data, language) == (text, why)


@pytest.mark.parametrize(
    ("path", "text", "language"),
    [
        ("a/b.py", "", "python"),
        ("a.tsx", "", "typescript"),
        ("a.ts", "<?xml version='1.0'?><TS>", None),
        ("a.h", "int f(void);\n", "c"),
        ("a.h", "namespace a {\n}\n", "cpp"),
        ("a.h", "std::string s;", "cpp"),
        ("README.MD", "", "markdown"),
        ("run", "#!/usr/bin/env -S python3.11 -u\n", "python"),
        ("run", "#!/bin/sh\n", "bash"),
        ("run", "#!/usr/bin/perl\n", None),
        ("Makefile", "all:\n", None),
        (".bashrc", "x", None),
        ("a.txt", "x", None),
    ],
)
def test_languages(path: str, text: str, language: str | None) -> None:
    assert languages.detect(path, text) == language


def test_labels() -> None:
    assert [languages.by_label(name) for name in ("C++", "Python", "Shell", "Basic")] == ["cpp", "python", "bash", None]


def test_scrub_emails() -> None:
    text, count = scrub.scrub("# by jane.doe@firm.co.uk, a@example.com; git@github.com:x/y @decorator x@y\n")
    assert text == "# by <EMAIL>, a@example.com; <EMAIL>:x/y @decorator x@y\n"
    assert count == 2


@pytest.mark.parametrize(
    "secret",
    [
        "AKIA" + "IOSFODNN7EXAMPLQ",
        "ghp_" + "aB3" * 12,
        "glpat-" + "aB3_" * 6,
        "xoxb-" + "123456789012-1234567890123-abcdefghijabcdefghijabcd",
        "sk_live_" + "a1B2" * 6,
    ],
)
def test_scrub_secrets(secret: str) -> None:
    pytest.importorskip("detect_secrets")
    text, count = scrub.scrub(f'before = 1\nkey = "{secret}"\nafter = 2\n')
    assert text == 'before = 1\nkey = "<SECRET>"\nafter = 2\n'
    assert count == 1


def test_scrub_passwords_in_urls_and_private_keys() -> None:
    pytest.importorskip("detect_secrets")
    assert scrub.scrub("url = 'https://user:hunter2hunter@host/'\n")[0] == "url = 'https://user:<SECRET>@host/'\n"
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{'MIIB' * 40}\n-----END RSA PRIVATE KEY-----"
    assert scrub.scrub(f"k = '''{key}'''\n")[0] == "k = '''<PRIVATE_KEY>'''\n"


def test_scrub_leaves_code_alone() -> None:
    pytest.importorskip("detect_secrets")
    code = (
        GOOD + "sha = '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08'\npassword = get_password()\n"
    )
    assert scrub.scrub(code) == (code, 0)


def test_scrub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    scrub.patterns.cache_clear()
    monkeypatch.setitem(sys.modules, "detect_secrets", None)
    monkeypatch.setitem(sys.modules, "detect_secrets.core.plugins.util", None)
    with pytest.raises(DataError, match=r"pip install 'openmercury\[data\]'"):
        scrub.patterns()


@pytest.mark.parametrize(
    "name", ["undefined", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7", "rot13"]
)
def test_encodings_that_are_no_character_sets(name: str) -> None:
    data = f"# coding: {name}\nx = '\\ud800'\n".encode()
    assert filters.decode(data, "python") == (None, "mixed or unknown encoding")


def test_code_nested_too_deeply_does_not_parse() -> None:
    document = Document("a", "if a: pass\n" + "elif b: pass\n" * 15_000, "python", "MIT", "a.py")
    assert filters.syntax_reason(document) == "syntax error"
