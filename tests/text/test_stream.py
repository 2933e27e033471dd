"""However the tokens arrive, the deltas join to the decoded text up to the first stop string, and never take back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openmercury.errors import InputError
from openmercury.text.stream import TextStream, begun
from tests.text import made

TINY = made.byte_level()
LETTERS = {text: TINY.encode(text)[0] for text in "ab"}

any_ids = st.lists(st.integers(0, TINY.vocab_size + 3), max_size=30)
text_ids = st.text(max_size=20).map(TINY.encode)
letter_ids = st.text("ab", max_size=12).map(lambda text: [LETTERS[letter] for letter in text])
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)
cuts = st.lists(st.integers(0, 30), max_size=8)


def truncated(text: str, stop: Sequence[str]) -> str:
    """`text` before the stop string that is complete first; of those complete together, before the longest."""
    for end in range(len(text) + 1):
        complete = [mark for mark in stop if text[:end].endswith(mark)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def split(ids: list[int], places: list[int]) -> list[list[int]]:
    bounds = [0, *sorted(min(place, len(ids)) for place in places), len(ids)]
    return [ids[begin:end] for begin, end in itertools.pairwise(bounds)]


def check(ids: list[int], stop: Sequence[str], places: list[int]) -> None:
    final = truncated(TINY.decode(ids), stop)
    stream = TextStream(TINY, stop)
    shown = ""
    for part in split(ids, places):
        shown += stream.push(part)
        assert stream.text == shown
        assert final.startswith(shown)
    shown += stream.flush()
    assert shown == stream.text == final
    assert stream.finished_by_stop == (final != TINY.decode(ids))


@given(st.one_of(any_ids, text_ids), cuts)
def test_any_split(ids: list[int], places: list[int]) -> None:
    check(ids, (), places)


@given(letter_ids, stops, cuts)
@example([LETTERS[letter] for letter in "abab"], ["abab", "ba"], [1, 2, 3])
def test_any_split_with_stop_strings(ids: list[int], stop: list[str], places: list[int]) -> None:
    check(ids, stop, places)


@given(any_ids, cuts, st.data())
def test_stop_strings_out_of_the_text(ids: list[int], places: list[int], data: st.DataObject) -> None:
    text = TINY.decode(ids)
    begin = data.draw(st.integers(0, len(text)))
    stop = text[begin : begin + data.draw(st.integers(1, 6))]
    check(ids, [stop] if stop else [], places)


@given(letter_ids, letter_ids, letter_ids, stops)
def test_what_is_shown_holds_for_every_continuation(
    ids: list[int], one: list[int], other: list[int], stop: list[str]
) -> None:
    stream = TextStream(TINY, stop)
    stream.push(ids)
    for rest in (one, other):
        assert truncated(TINY.decode([*ids, *rest]), stop).startswith(stream.text)


@given(st.text("ab", max_size=8), stops)
def test_nothing_is_held_without_need(text: str, stop: list[str]) -> None:
    stream = TextStream(TINY, stop)
    stream.push([LETTERS[letter] for letter in text])
    if not stream.finished_by_stop:
        held = text.removeprefix(stream.text)
        assert held == "" or any(mark.startswith(held) for mark in stop)


def test_characters_wait_for_their_bytes() -> None:
    ids = TINY.encode("a🙂b")
    stream = TextStream(TINY)
    deltas = [stream.push([number]) for number in ids]
    assert "".join(deltas) == "a🙂b"
    assert "\ufffd" not in "".join(deltas)
    cut = TextStream(TINY)
    assert cut.push(ids[:2]) == "a"
    assert cut.flush() == "\ufffd"


def test_after_a_stop_string_nothing_follows() -> None:
    stream = TextStream(TINY, ["\n\n"])
    assert stream.push(TINY.encode("a\n")) == "a"
    assert stream.push(TINY.encode("\nb")) == ""
    assert stream.finished_by_stop
    assert stream.push(TINY.encode("c")) == stream.flush() == ""
    assert stream.text == "a"


def test_control_tokens_are_no_text() -> None:
    stream = TextStream(TINY, ["<|im_end|>"])
    assert stream.push(TINY.encode("a<|im_end|>b", special=True)) == "ab"
    assert not stream.finished_by_stop


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InputError, match="a stop string is empty: leave it out"):
        TextStream(TINY, ["x", ""])


@pytest.mark.parametrize(
    ("text", "marks", "length"),
    [
        ("xab", ["abc"], 2),
        ("abc", ["abc"], 0),
        ("abc", ["abcd", "cx"], 3),
        ("", ["a"], 0),
        ("a", [], 0),
        ("aa", ["aab"], 2),
    ],
)
def test_begun(text: str, marks: list[str], length: int) -> None:
    assert begun(text, marks) == length
