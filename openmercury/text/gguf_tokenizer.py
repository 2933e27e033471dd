"""Tokenizer files from the metadata of a GGUF file, which has the vocabulary but names its rules only by a word.

Rules are known for `qwen2` (Qwen2, Qwen2.5, Qwen3): NFC, one splitting expression, byte-level BPE. Entries marked as
unused pad the list to the height of the embedding; they are left out, so that no text can ever produce their ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gguf
from gguf.constants import Keys, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from openmercury.errors import CheckpointError, UnsupportedError

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END = "<|endoftext|>"  # ends a text in base and chat models alike; chat models name another token as their eos


def tokenizer_files(reader: gguf.GGUFReader) -> dict[str, str]:
    """File name → text of `tokenizer.json` and `tokenizer_config.json`; ids are those of the GGUF's own list.

    The config has `eos_token`, `pad_token`, `bos_token` if texts begin with one, `chat_template` if there is one, and
    `eos_ids`: all tokens that end a text. Raises UnsupportedError for other rules, CheckpointError for broken metadata.
    """
    kind, rules = _value(reader, Keys.Tokenizer.MODEL), _value(reader, Keys.Tokenizer.PRE)
    if (kind, rules) != ("gpt2", "qwen2"):
        raise UnsupportedError(
            f"GGUF tokenizer {kind!r} with rules {rules!r} is not supported: import the `transformers` folder instead"
        )
    tokens = _needed(reader, Keys.Tokenizer.LIST)
    types = _needed(reader, Keys.Tokenizer.TOKEN_TYPE)
    if len(tokens) != len(types) or len(tokens) != len(set(tokens)):
        raise CheckpointError("the GGUF file has a token list that is cut or has doubles: fetch it again")
    core = _core(tokens, types, _needed(reader, Keys.Tokenizer.MERGES))
    config = json.dumps(_config(reader, tokens), indent=1, ensure_ascii=False)
    return {"tokenizer.json": core.to_str(), "tokenizer_config.json": config + "\n"}


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _needed(reader: gguf.GGUFReader, key: str) -> Any:
    value = _value(reader, key)
    if value is None:
        raise CheckpointError(f"the GGUF file has no {key}: use a file with its tokenizer inside")
    return value


def _core(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> Tokenizer:
    vocabulary = {text: i for i, text in enumerate(tokens) if types[i] != TokenType.UNUSED}
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in merges)]
    try:
        core = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"the GGUF file has a broken tokenizer ({error}): fetch it again") from None
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    # Both kinds are found in text whole; control tokens are also hidden in output and inert in what users write.
    special: dict[int, bool] = {TokenType.CONTROL: True, TokenType.USER_DEFINED: False}
    added = [(tokens[i], special[kind]) for i, kind in enumerate(types) if kind in special]
    core.add_tokens([AddedToken(text, special=flag, normalized=False) for text, flag in added])
    return core


def _config(reader: gguf.GGUFReader, tokens: Sequence[str]) -> dict[str, Any]:
    eos = int(_needed(reader, Keys.Tokenizer.EOS_ID))
    ends = [eos, _value(reader, Keys.Tokenizer.EOT_ID), tokens.index(END) if END in tokens else None]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokens[eos]}
    named = {"pad_token": _value(reader, Keys.Tokenizer.PAD_ID)}
    if _value(reader, Keys.Tokenizer.ADD_BOS):
        named["bos_token"] = _value(reader, Keys.Tokenizer.BOS_ID)
    config |= {name: tokens[number] for name, number in named.items() if number is not None}
    template = _value(reader, Keys.Tokenizer.CHAT_TEMPLATE)
    if template is not None:
        config["chat_template"] = template
    return {**config, "eos_ids": list(dict.fromkeys(number for number in ends if number is not None))}
