"""Ids of a text by its lines are those of the text."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import openmercury.data
from openmercury.data import lines
from openmercury.data.lines import LineTokenizer
from openmercury.llm import default_model
from openmercury.text.tokenizer import Tokenizer

BLANKS = ["\n", "\n\n", "\r", "\r\n", " ", "    ", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u3000"]
WORDS = ["a", "if x:", ")", "};", "'s", "\u0301", "é", "1", "#!", "<|im_start|>", "<tool_call>", "漢字", "🙂", "_"]


@pytest.fixture(scope="module")
def pair() -> tuple[Tokenizer, LineTokenizer]:
    return Tokenizer.load(default_model()), LineTokenizer.load(default_model())


def test_it_remembers_for_the_shipped_tokenizer(pair: tuple[Tokenizer, LineTokenizer]) -> None:
    assert pair[1].by_lines
    assert pair[1].fingerprint == pair[0].fingerprint


@settings(max_examples=400, deadline=None)
@given(parts=st.lists(st.sampled_from(BLANKS + WORDS) | st.text(max_size=3), max_size=30))
def test_any_text(pair: tuple[Tokenizer, LineTokenizer], parts: list[str]) -> None:
    text = "".join(parts).encode("utf-8", "ignore").decode()
    assert pair[1].encode(text) == pair[0].encode(text)
    assert pair[1].encode(text, special=True) == pair[0].encode(text, special=True)


def test_own_files_and_a_table_that_is_full(
    pair: tuple[Tokenizer, LineTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "REMEMBERED", 50)
    for path in sorted(Path(openmercury.data.__file__).parent.glob("*.py"))[:8]:
        text = path.read_text()
        assert pair[1].encode(text) == pair[0].encode(text)


def test_a_tokenizer_whose_lines_do_not_stand_alone(tmp_path: Path) -> None:
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "Ċ": 1, "Ċa": 2}, merges=[("Ċ", "a")]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = LineTokenizer.load(tmp_path)
    assert not tokenizer.by_lines
    assert tokenizer.encode("a\na") == Tokenizer.load(tmp_path).encode("a\na") == [0, 2]
