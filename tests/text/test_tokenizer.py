"""Ids are the library's, bytes are exact, and text that looks like a control token is text."""

from __future__ import annotations

import json
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from openmercury.errors import CheckpointError, InputError, UnsupportedError
from openmercury.text.tokenizer import Tokenizer
from tests.text import made

TINY = made.byte_level()
CORE = made.byte_level_core()
PARTS = [*made.FLAGGED, *made.UNFLAGGED, "<|", "|>", "im_end", "<", ">", " ", "\n", "x", "é", "e\u0301", "你", "🙂"]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PARTS)).map("".join))


@given(texts)
def test_plain_text_holds_no_control_token_and_round_trips(text: str) -> None:
    ids = TINY.encode(text)
    assert not set(ids) & set(TINY.special.values())
    assert TINY.decode(ids) == unicodedata.normalize("NFC", text)


@given(texts)
def test_special_ids_are_those_of_the_library(text: str) -> None:
    assert TINY.encode(text, special=True) == CORE.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", made.TEXTS)
def test_decode_is_that_of_the_library(text: str) -> None:
    ids = TINY.encode(text + "<|im_end|>", special=True)
    assert TINY.decode(ids, special=True) == CORE.decode(ids, skip_special_tokens=False)
    assert TINY.decode(ids) == unicodedata.normalize("NFC", text)


def test_control_tokens_are_hidden_but_words_are_text() -> None:
    ids = TINY.encode("a<|im_end|><tool_call><é >b<|fim_pad|>", special=True)
    assert len(ids) == 6
    assert TINY.decode(ids) == "a<tool_call><é >b"
    assert TINY.decode(ids, special=True) == "a<|im_end|><tool_call><é >b<|fim_pad|>"
    assert TINY.encode("<tool_call>") == TINY.encode("<tool_call>", special=True)
    assert set(TINY.special) == {*made.FLAGGED, *made.UNFLAGGED}
    assert TINY.token_id("<|im_end|>") == CORE.token_to_id("<|im_end|>")
    assert TINY.token_id("<tool_call>") is None
    assert TINY.token_id("def") is None


def test_ids_beyond_the_vocabulary_are_silent() -> None:
    assert TINY.vocab_size == CORE.get_vocab_size()
    for number in (-1, TINY.vocab_size, TINY.vocab_size + 10**6, TINY.special["<|im_end|>"]):
        assert TINY.token_bytes(number) == b""
    assert TINY.decode([*TINY.encode("ab"), TINY.vocab_size + 5]) == "ab"


def test_cut_characters_become_replacement_characters() -> None:
    ids = TINY.encode("a€b")
    assert len(ids) == 5
    assert b"".join(map(TINY.token_bytes, ids)) == "a€b".encode()
    assert TINY.decode([*ids[:2], ids[4]]) == "a\ufffdb"
    assert TINY.decode(ids[3:]) == "\ufffdb"


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError, match="send valid Unicode"):
        TINY.encode("a\ud83d")


def test_threads_do_not_disturb_each_other() -> None:
    plain, special = TINY.encode("<|im_end|>" * 50), TINY.encode("<|im_end|>" * 50, special=True)
    assert plain != special
    with ThreadPoolExecutor(4) as pool:
        modes = [number % 2 == 0 for number in range(400)]
        done = pool.map(lambda mode: TINY.encode("<|im_end|>" * 50, special=mode), modes)
        assert list(done) == [special if mode else plain for mode in modes]


# --- sentencepiece ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hello world", "  two  spaces", "你好 🙂", "a\n\tb", "</s><s>"])
def test_sentencepiece(text: str) -> None:
    tokenizer, core = made.sentencepiece(), made.sentencepiece_core()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == " " + text
    assert core.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == (" " + text).encode()
    assert tokenizer.encode(text, special=True) == core.encode(text, add_special_tokens=False).ids
    assert tokenizer.eos_ids == (2,)


# --- files -----------------------------------------------------------------------------------------------------------


def saved(folder: Path, facts: object = made.FACTS) -> Path:
    made.byte_level_core().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return folder


def test_load(tmp_path: Path) -> None:
    loaded = Tokenizer.load(saved(tmp_path, made.FACTS | {"add_bos_token": True, "unk_token": None}))
    assert loaded.chat_template == made.TEMPLATE
    assert loaded.named_tokens == {"bos_token": "<|file_sep|>", "eos_token": "<|im_end|>"}
    assert loaded.eos_ids == (loaded.special["<|im_end|>"],)
    assert loaded.encode("def f", special=True) == TINY.encode("def f", special=True)


def test_load_takes_our_eos_ids(tmp_path: Path) -> None:
    assert Tokenizer.load(saved(tmp_path, made.FACTS | {"eos_ids": [7, 8]})).eos_ids == (7, 8)


def test_load_without_config(tmp_path: Path) -> None:
    (saved(tmp_path) / "tokenizer_config.json").unlink()
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.chat_template, loaded.eos_ids, loaded.named_tokens) == (None, (), {})


def test_template_may_have_a_name_or_a_file_of_its_own(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]
    saved(tmp_path, {"chat_template": several})
    assert Tokenizer.load(tmp_path).chat_template == "a"
    (tmp_path / "chat_template.jinja").write_text("c")
    assert Tokenizer.load(tmp_path).chat_template == "c"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b'{"model": ', b"[]", b"\xff\xfe"])
def test_broken_files(tmp_path: Path, name: str, content: bytes) -> None:
    (saved(tmp_path) / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} .*: fetch the checkpoint again"):
        Tokenizer.load(tmp_path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
def test_other_kinds_are_refused(decoder: decoders.Decoder | None) -> None:
    core = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    if decoder is not None:
        core.decoder = decoder
    with pytest.raises(UnsupportedError, match="neither byte-level nor sentencepiece"):
        Tokenizer(core, {})


# --- the shipped one -------------------------------------------------------------------------------------------------


def test_shipped_round_trips(shipped: Tokenizer) -> None:
    assert shipped.vocab_size == 151_665
    assert shipped.eos_ids == (151_645, 151_643)
    for text in [*made.TEXTS, *made.FLAGGED, "[PAD151670]", Path(__file__).read_text(encoding="utf-8")]:
        ids = shipped.encode(text)
        assert not set(ids) & set(shipped.special.values())
        assert max(ids, default=0) < 151_665
        assert shipped.decode(ids) == unicodedata.normalize("NFC", text)


def test_shipped_splits_as_qwen2_does(shipped: Tokenizer) -> None:
    """Each digit alone, line ends with the space before them, one space to a word, contractions apart."""

    def pieces(text: str) -> list[str]:
        return [shipped.decode([number]) for number in shipped.encode(text)]

    assert pieces("x = 123") == ["x", " =", " ", "1", "2", "3"]
    assert pieces("we'll  go\n\n") == ["we", "'ll", " ", " go", "\n\n"]
    assert pieces("if a:\n    b") == ["if", " a", ":\n", "   ", " b"]
