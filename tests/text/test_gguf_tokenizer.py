"""A tokenizer written into a GGUF file comes back with the same ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.constants import TokenType

from openmercury.errors import CheckpointError, UnsupportedError
from openmercury.text.gguf_tokenizer import QWEN2_SPLIT, tokenizer_files
from openmercury.text.tokenizer import Tokenizer
from tests.text import made

CONTROL = (*made.FLAGGED, *made.UNFLAGGED)
PADDING = 5


def parts() -> dict[str, Any]:
    """The tiny byte-level tokenizer as GGUF metadata, with padding entries behind it."""
    core = json.loads(made.byte_level_core().to_str())
    plain = sorted(core["model"]["vocab"], key=core["model"]["vocab"].__getitem__)
    added = [token["content"] for token in core["added_tokens"]]
    kinds = [TokenType.CONTROL if text in CONTROL else TokenType.USER_DEFINED for text in added]
    tokens = [*plain, *added]
    padding = [f"[PAD{len(tokens) + i}]" for i in range(PADDING)]
    return {
        "tokens": [*tokens, *padding],
        "types": [*[TokenType.NORMAL] * len(plain), *kinds, *[TokenType.UNUSED] * PADDING],
        "merges": [" ".join(pair) for pair in core["model"]["merges"]],
        "model": "gpt2",
        "pre": "qwen2",
        "eos": tokens.index("<|im_end|>"),
        "pad": tokens.index("<|endoftext|>"),
        "bos": None,
        "template": made.TEMPLATE,
    }


def written(path: Path, made_of: dict[str, Any]) -> gguf.GGUFReader:
    """Entries that are None are left out."""
    writer = gguf.GGUFWriter(path, "qwen2")
    adders: dict[str, Callable[[Any], None]] = {
        "tokens": writer.add_token_list,
        "types": writer.add_token_types,
        "merges": writer.add_token_merges,
        "model": writer.add_tokenizer_model,
        "pre": writer.add_tokenizer_pre,
        "eos": writer.add_eos_token_id,
        "pad": writer.add_pad_token_id,
        "template": writer.add_chat_template,
    }
    for name, add in adders.items():
        if made_of[name] is not None:
            add(made_of[name])
    if made_of["bos"] is not None:
        writer.add_bos_token_id(made_of["bos"])
        writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return gguf.GGUFReader(path)


def rebuilt(tmp_path: Path, made_of: dict[str, Any]) -> Tokenizer:
    for name, text in tokenizer_files(written(tmp_path / "tiny.gguf", made_of)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return Tokenizer.load(tmp_path)


def test_rebuilt_tokenizer(tmp_path: Path) -> None:
    given, original = parts(), made.byte_level()
    tokenizer = rebuilt(tmp_path, given)
    assert tokenizer.vocab_size == len(given["tokens"]) - PADDING
    assert tokenizer.special == original.special
    assert tokenizer.chat_template == made.TEMPLATE
    assert tokenizer.named_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert tokenizer.eos_ids == (given["eos"], given["pad"])
    every = range(len(given["tokens"]))
    assert [tokenizer.token_bytes(i) for i in every] == [original.token_bytes(i) for i in every]
    # These split alike under the rules of Qwen2 and of the tiny tokenizer.
    for text in ["def f(x): return x", "über café 你好", "a<|im_end|><tool_call>b", "[PAD400]"]:
        for special in (False, True):
            assert tokenizer.encode(text, special=special) == original.encode(text, special=special)


def test_rules_are_those_of_qwen2(tmp_path: Path) -> None:
    files = tokenizer_files(written(tmp_path / "tiny.gguf", parts()))
    core = json.loads(files["tokenizer.json"])
    assert core["normalizer"] == {"type": "NFC"}
    assert core["pre_tokenizer"]["pretokenizers"][0]["pattern"] == {"Regex": QWEN2_SPLIT}
    assert not any(text.startswith("[PAD") for text in core["model"]["vocab"])


def test_bos_only_where_texts_begin_with_it(tmp_path: Path) -> None:
    given = parts()
    tokenizer = rebuilt(tmp_path, given | {"bos": given["pad"], "pad": None, "template": None})
    assert tokenizer.named_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    assert tokenizer.chat_template is None


@pytest.mark.parametrize("change", [{"model": "llama"}, {"pre": "llama-bpe"}, {"pre": None}, {"model": None}])
def test_other_rules_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="import the `transformers` folder instead"):
        tokenizer_files(written(tmp_path / "tiny.gguf", parts() | change))


@pytest.mark.parametrize("name", ["tokens", "types", "merges", "eos"])
def test_missing_metadata(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"the GGUF file has no tokenizer\.ggml"):
        tokenizer_files(written(tmp_path / "tiny.gguf", parts() | {name: None}))


@pytest.mark.parametrize("change", [{"types": [1]}, {"tokens": ["a", "a"], "types": [1, 1]}, {"merges": ["no such"]}])
def test_broken_metadata(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="fetch it again"):
        tokenizer_files(written(tmp_path / "tiny.gguf", parts() | change))
