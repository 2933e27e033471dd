"""Text to token ids and back, from a folder's `tokenizer.json`.

`encode` treats text as text: a string that looks like a control token is split into ordinary tokens unless the caller
asks for control tokens. Decoding joins bytes, one table entry a token, so that a token that ends inside a character
stays exact. Byte-level BPE (Qwen, Llama 3) and sentencepiece-like BPE (Llama 2) differ only in how that table is made.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tokenizers

from openmercury.errors import CheckpointError, InputError, UnsupportedError

# Qwen's own files leave the fill-in-the-middle tokens unflagged; their form says what they are.
CONTROL_FORM = re.compile(r"<\|[^<>|]+\|>")


class Tokenizer:
    """A loaded tokenizer.

    special        control tokens: text → id
    named_tokens   text of the tokens that have a part to play, as chat templates call them: "bos_token" → "<s>"
    eos_ids        tokens that end a text, as far as the tokenizer's own files say; the model's `config.json` has more
    chat_template  Jinja source, or None
    vocab_size     highest id + 1; a model's embedding may have padding rows beyond
    """

    def __init__(self, core: tokenizers.Tokenizer, facts: dict[str, Any]) -> None:
        """Take over `core`; `facts` are the keys of `tokenizer_config.json`, and `eos_ids` where we wrote it."""
        _flag_control_tokens(core)
        added = core.get_added_tokens_decoder()
        self.special = {token.content: number for number, token in added.items() if token.special}
        self.named_tokens = _named_tokens(facts)
        self.chat_template = _chat_template(facts)
        self._core, self._lock = core, threading.Lock()
        self._names = {number: text.encode() for text, number in self.special.items()}
        self._bytes = _byte_table(core)
        self.vocab_size = len(self._bytes)
        eos = core.token_to_id(self.named_tokens.get("eos_token", ""))
        self.eos_ids: tuple[int, ...] = tuple(facts.get("eos_ids") or ([] if eos is None else [eos]))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` where there are any.

        Raises CheckpointError when they are missing or broken, UnsupportedError for other kinds of tokenizer.
        """
        path, config, template = (
            folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        )
        if not path.exists():
            raise CheckpointError(f"{folder} has no tokenizer.json: fetch the checkpoint again")
        text = _read(path)
        try:
            core = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise CheckpointError(f"{path} is broken ({error}): fetch the checkpoint again") from None
        facts = _read_facts(config) if config.exists() else {}
        if template.exists():
            facts["chat_template"] = _read(template)
        return cls(core, facts)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`; with `special`, control tokens written in it act as such. Nothing is added to it.

        Raises InputError when the text is no valid Unicode.
        """
        try:
            with self._lock:  # the switch is a state of the library's object, which threads share
                self._core.encode_special_tokens = not special
                ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise InputError("the text holds half of a surrogate pair: send valid Unicode") from None
        return ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of token ids; bytes that form no character become U+FFFD, control tokens are shown only on request.

        The space that sentencepiece tokenizers put before a text stays in front.
        """
        names = self._names if special else {}
        return b"".join(names.get(number) or self.token_bytes(number) for number in ids).decode(errors="replace")

    def token_bytes(self, number: int) -> bytes:
        """The bytes a token stands for; none for control tokens and for ids the tokenizer does not have."""
        return self._bytes[number] if 0 <= number < len(self._bytes) else b""

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of what every id means: texts encoded by tokenizers of one fingerprint may be trained on together."""
        meaning = hashlib.sha256()
        for number, text in sorted((number, text) for text, number in self.special.items()):
            meaning.update(f"{number} {text}\n".encode())
        for token in self._bytes:
            meaning.update(len(token).to_bytes(4, "little") + token)
        return meaning.hexdigest()

    def token_id(self, text: str) -> int | None:
        """Id of a control token, if the tokenizer has it."""
        return self.special.get(text)


# --- files -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): fetch the checkpoint again") from None


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is broken ({error}): fetch the checkpoint again") from None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} is broken (no JSON object): fetch the checkpoint again")
    return facts


def _named_tokens(facts: dict[str, Any]) -> dict[str, str]:
    """Keys such as `eos_token`; the value is the token's text or an object around it."""
    found = {}
    for key, value in facts.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _chat_template(facts: dict[str, Any]) -> str | None:
    """The template, or the one called "default" of several."""
    template = facts.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


# --- the vocabulary --------------------------------------------------------------------------------------------------


def _flag_control_tokens(core: tokenizers.Tokenizer) -> None:
    added = core.get_added_tokens_decoder().values()
    core.add_special_tokens([t for t in added if not t.special and CONTROL_FORM.fullmatch(t.content)])


def _byte_table(core: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of every token by id; empty for control tokens and for gaps in the vocabulary."""
    spelt = _spelling(core)
    vocabulary = core.get_vocab(with_added_tokens=True)
    added = core.get_added_tokens_decoder()
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for text, number in vocabulary.items():
        if number not in added:
            table[number] = spelt(text)
    for number, token in added.items():
        table[number] = b"" if token.special else token.content.encode()
    return table


def _spelling(core: tokenizers.Tokenizer) -> Callable[[str], bytes]:
    """How the vocabulary writes bytes; the tokenizer's decoder tells."""
    decoder = "" if core.decoder is None else core.decoder.__getstate__().decode()
    if '"ByteLevel"' in decoder:
        return _byte_level()
    if '"ByteFallback"' in decoder or "▁" in decoder:
        return _sentencepiece
    raise UnsupportedError(
        "the tokenizer is neither byte-level nor sentencepiece-like BPE: use a Llama, Qwen2 or Qwen3 checkpoint"
    )


def _byte_level() -> Callable[[str], bytes]:
    """GPT-2's alphabet: the printable bytes of Latin-1 stand for themselves, the others for U+0100 and up, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}

    def spelt(text: str) -> bytes:
        try:
            return bytes([alphabet[character] for character in text])
        except KeyError:  # no spelling of bytes, so the token is its own text
            return text.encode()

    return spelt


def _sentencepiece(text: str) -> bytes:
    if re.fullmatch("<0x[0-9A-F]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace("▁", " ").encode()
