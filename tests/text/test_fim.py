"""Prefix, suffix, middle, and where a middle ends."""

from __future__ import annotations

import pytest

from openmercury.errors import EmptyPromptError, UnsupportedError
from openmercury.text import fim
from openmercury.text.stream import TextStream
from openmercury.text.tokenizer import Tokenizer
from tests.text import made


@pytest.mark.parametrize(("prefix", "suffix"), [("def f(", "):\n"), ("", "\nx"), ("x = ", ""), (" ", " ")])
def test_order(tiny: Tokenizer, prefix: str, suffix: str) -> None:
    text = f"<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>"
    assert fim.render_fill(tiny, prefix, suffix) == tiny.encode(text, special=True)


def test_control_tokens_in_code_stay_text(tiny: Tokenizer) -> None:
    ids = fim.render_fill(tiny, "MARK = '<|fim_suffix|>'", "# <|fim_middle|><|im_end|>")
    marks = [number for number in ids if number in tiny.special.values()]
    assert marks == [tiny.special[name] for name in (fim.PREFIX, fim.SUFFIX, fim.MIDDLE)]


def test_nothing_to_fill(tiny: Tokenizer) -> None:
    with pytest.raises(EmptyPromptError, match="give the code around the gap"):
        fim.render_fill(tiny, "", "")


def test_a_tokenizer_without_the_tokens() -> None:
    with pytest.raises(UnsupportedError, match="no fill-in-the-middle tokens"):
        fim.render_fill(made.sentencepiece(), "a", "b")


def test_stop_ids() -> None:
    tokenizer = made.byte_level(eos_ids=[5, made.byte_level().special["<|im_end|>"]])
    stops = fim.stop_ids(tokenizer)
    assert len(set(stops)) == len(stops)
    assert stops[:2] == tokenizer.eos_ids
    assert set(stops) == {5, *tokenizer.special.values()} - {tokenizer.special["<|im_start|>"]}
    assert fim.stop_ids(made.sentencepiece()) == (2,)


@pytest.mark.parametrize(
    ("suffix", "middle", "kept"),
    [
        ("\n    return total\n", "x += 1\n    return total\nprint(1)", "x += 1"),
        ("\n\n    return total", "x += 1\n    return total", "x += 1"),  # fewer blank lines than the suffix
        (")\n    return total", "x, y)\n    return total", "x, y"),  # and what closes the gap is not said twice
        (")\n    return total", "x, y\n    return total", "x, y"),
        (" + total", "x + total", "x"),
        (
            "    return total\n",
            "    x += 1\n        return total\n    return total\n",
            "    x += 1\n        return total",
        ),
        ("\n)\n", "x\n)\n", "x\n)\n"),  # no line that tells
        (
            "\n    return total\n",
            "x\n        return total\n    y",
            "x\n        return total\n    y",
        ),  # another indentation
    ],
)
def test_a_middle_ends_where_the_suffix_begins(suffix: str, middle: str, kept: str) -> None:
    tokenizer = made.byte_level()
    stream = TextStream(tokenizer, fim.suffix_stops(suffix))
    for token in tokenizer.encode(middle):
        stream.push([token])
    stream.flush()
    assert stream.text == kept


def test_shipped(shipped: Tokenizer) -> None:
    ids = fim.render_fill(shipped, "a", "b")
    assert ids == [151_659, 64, 151_661, 65, 151_660]
    assert set(fim.stop_ids(shipped)) == {151_643, 151_645, *range(151_659, 151_665)}
