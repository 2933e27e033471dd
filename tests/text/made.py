"""Tiny tokenizers of both kinds, made in memory."""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from openmercury.text.tokenizer import Tokenizer

FLAGGED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|file_sep|>")
UNFLAGGED = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")  # as in Qwen's own files
WORDS = ("<tool_call>", "<é >")  # found whole in text, but no control tokens
CORPUS = [
    "def f(x):\n    return x + 1\n\nclass A:\n\tname = 'text'\n" * 4,
    "the system, the user and the assistant | im _ start end < > fim prefix\n" * 4,
    "über café 你好 世界 🙂\r\n" * 4,
]
TEXTS = [
    "",
    "def f(x):\n\treturn x+1\n",
    "a\r\nb\r\n\r\n  c",
    "if x:" + " " * 70 + "\n\n\n \t \n",
    "你好，世界 テスト 한국어",
    "👩‍👩‍👧‍👦 🇩🇪 ok",
    "n\u0303 stays with its letter: ñ x\u0323\u0307",
    "\x00\x7f\u00a0\u200b\ufeff\u2028",
    "1234567890 it's WE'LL",
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FACTS = {"bos_token": "<|file_sep|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE}


def byte_level_core() -> tokenizers.Tokenizer:
    """Trained on a few lines; NFC as in Qwen."""
    core = tokenizers.Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in FLAGGED])
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*UNFLAGGED, *WORDS)])
    return core


def byte_level(**facts: Any) -> Tokenizer:
    return Tokenizer(byte_level_core(), {**FACTS, **facts})


def sentencepiece_core() -> tokenizers.Tokenizer:
    """The layout of Llama 2: marks, 256 bytes, then pieces."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"helowrd", "lo", "▁w"]
    merges = [("l", "o"), ("▁", "w")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in pieces[:3]])
    return core


def sentencepiece() -> Tokenizer:
    return Tokenizer(sentencepiece_core(), {"bos_token": "<s>", "eos_token": "</s>"})
