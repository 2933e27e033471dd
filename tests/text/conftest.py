"""Tokenizers shared by the tests of a session: they are never changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from openmercury.text.tokenizer import Tokenizer
from tests.text import made

SHIPPED = Path(__file__).parents[2] / "models" / "openmercury-nano"


@pytest.fixture(scope="session")
def tiny() -> Tokenizer:
    return made.byte_level()


@pytest.fixture(scope="session")
def shipped_folder() -> Path:
    if not (SHIPPED / "tokenizer.json").exists():
        pytest.skip("the shipped model's tokenizer is not here")
    return SHIPPED


@pytest.fixture(scope="session")
def shipped(shipped_folder: Path) -> Tokenizer:
    return Tokenizer.load(shipped_folder)
