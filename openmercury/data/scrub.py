"""Takes e-mail addresses and secrets out of a text; a placeholder stands where each was.

Secrets are what the detectors of detect-secrets find by their form: keys of clouds and services, tokens, passwords in
URLs. Those that guess by entropy or by the name of a variable are left out: in code they mostly hit hashes and tests.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence
from typing import Any

from openmercury.errors import DataError

SECRET, EMAIL, PRIVATE_KEY = "<SECRET>", "<EMAIL>", "<PRIVATE_KEY>"
SHORTEST = 8  # characters of a group that is a secret by itself: shorter ones are kinds of keys
NO_DETECTORS = "scrubbing needs detect-secrets: pip install 'openmercury[data]', or set scrub=false"
_LEFT_OUT = ("IPPublicDetector", "KeywordDetector", "PrivateKeyDetector")
_EMAIL = re.compile(r"(?<![\w.%+/-])[A-Za-z0-9][\w.%+-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![\w-])")
_RESERVED = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net))?|test|invalid|localhost|local)$", re.IGNORECASE)
_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----(.{20,}?)-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----", re.S
)
# All that the detectors find holds a run of RUN such characters with a digit among them, or a password in a URL. They
# are shown the few lines that do.
RUN = 20
_RUN_BYTES = bytes(97 if chr(code) in string.ascii_letters + string.digits + "_+/=-" else 32 for code in range(256))
_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_DIGIT = re.compile("[0-9]")


def scrub(text: str) -> tuple[str, int]:
    """The text with placeholders, and how many there are. Raises DataError when detect-secrets is not installed."""
    text, count = _KEY.subn(PRIVATE_KEY, text) if "PRIVATE KEY" in text else (text, 0)
    if "@" in text:
        text, more = _without_emails(text)
        count += more
    text, more = _without_secrets(text)
    return text, count + more


def _without_emails(text: str) -> tuple[str, int]:
    count = 0

    def replace(found: re.Match[str]) -> str:
        nonlocal count
        if _RESERVED.search(found[1]):
            return found[0]
        count += 1
        return EMAIL

    return _EMAIL.sub(replace, text), count


def _without_secrets(text: str) -> tuple[str, int]:
    pieces, done, count = [], 0, 0
    for place in _suspect(text):
        if place < done:
            continue
        start = text.rfind("\n", 0, place) + 1
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        line = text[start:end]
        for secret in secrets(line):
            line = line.replace(secret, SECRET)
            count += 1
        pieces += [text[done:start], line]
        done = end
    return "".join((*pieces, text[done:])), count


def _suspect(text: str) -> list[int]:
    """Places in lines that may hold a secret, in order."""
    places = [found.start() for found in _PASSWORD.finditer(text)] if "://" in text else []
    runs = text.encode("ascii", "replace").translate(_RUN_BYTES)  # one byte a character
    begin = runs.find(b"a" * RUN)
    while begin >= 0:
        end = runs.find(b" ", begin)
        end = len(runs) if end < 0 else end
        if _DIGIT.search(text, begin, end):
            places.append(begin)
        begin = runs.find(b"a" * RUN, end)
    return sorted(places)


def secrets(line: str) -> list[str]:
    """The secrets of one line, longest first: of a match the longest group, or all of it where its groups are short."""
    found: set[str] = set()
    for pattern in patterns():
        for match in pattern.finditer(line):
            part = max((group or "" for group in match.groups()), key=len, default="")
            found.add(part if len(part) >= SHORTEST else match[0].strip("\"' =:"))
    return sorted(found, key=lambda one: (-len(one), one))


@functools.cache
def patterns() -> Sequence[re.Pattern[str]]:
    """The detectors' expressions, in order of their names."""
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.plugins.base import RegexBasedDetector
    except ModuleNotFoundError:
        raise DataError(NO_DETECTORS) from None
    classes: list[Any] = sorted(get_mapping_from_secret_type_to_class().values(), key=lambda one: str(one.__name__))
    known = [one() for one in classes if issubclass(one, RegexBasedDetector) and one.__name__ not in _LEFT_OUT]
    return tuple(pattern for detector in known for pattern in detector.denylist)
