"""Files become code and holes: nothing is lost, every row is what a request would be, chance hangs on seed and id."""

from __future__ import annotations

import ast
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmercury.data.config import ExampleRecipe
from openmercury.data.document import Document
from openmercury.data.examples import make_examples
from openmercury.data.examples.files import MARKS, split
from openmercury.data.examples.spans import _blocks, _brackets, _python, definitions, random_span, syntax_span
from openmercury.data.shards import Example
from openmercury.errors import UnsupportedError
from openmercury.text import fim
from openmercury.text.tokenizer import Tokenizer
from tests.text import made

TOKENIZER = made.byte_level()
PYTHON = '''\
"""Module."""
import os


# A comment above.
@decorated(1, two=2)
def f(x, y=1):
    """Doc."""
    if x:
        return g(x, y + 1, *rest, key="ü)")
    for i in range(3):
        print(f"{i + x}", i)
    return [a for a in y]


class A:
    name = "é" + 'b'

    async def m(self):
        await self.other(lambda: 1)


f(1)
'''
C = """\
int main(void) {
    if (x > 0) { // not a bracket: }
        puts("neither (");
        return f(a, b[i]);
    }
    return 0;
}
"""


def document(text: str, language: str = "python", name: str = "a") -> Document:
    return Document(name, text, language, "MIT", f"{name}.py")


def read(example: Example) -> tuple[str, str, str]:
    """Prefix, suffix and middle of an example of a hole, and that it is asked for as requests are."""
    marks = [TOKENIZER.token_id(mark) for mark in (fim.PREFIX, fim.SUFFIX, fim.MIDDLE)]
    ids = list(example.ids)
    before, behind, middle = (ids.index(mark) for mark in marks)
    assert isinstance(example.loss, int)
    assert ids[-1] == TOKENIZER.token_id("<|endoftext|>")
    parts = [ids[before + 1 : behind], ids[behind + 1 : middle], ids[example.loss : -1]]
    suffix_first = behind == before + 1
    if suffix_first:
        parts[0] = ids[middle + 1 : example.loss]
    prefix, suffix, hole = map(TOKENIZER.decode, parts)
    assert ids[: example.loss] == fim.render_fill(TOKENIZER, prefix, suffix, suffix_first=suffix_first)
    assert ids[example.loss : -1] == TOKENIZER.encode(hole)
    return prefix, suffix, hole


@given(st.text(st.characters(max_codepoint=126, min_codepoint=9), min_size=1, max_size=400), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_nothing_of_a_file_is_lost(text: str, seed: int) -> None:
    recipe = ExampleRecipe(seed=seed, max_tokens=128, functions=0)
    found = make_examples(document(text), recipe, TOKENIZER)
    parts = []
    for example in found:
        assert len(example.ids) <= recipe.max_tokens
        if example.kind == "fim":
            prefix, suffix, hole = read(example)
            assert hole
            parts.append(prefix + hole + suffix)
        else:
            assert example.loss == 0
            parts.append(TOKENIZER.decode(example.ids))
    assert "".join(parts) == text
    if found[-1].kind == "code":
        assert found[-1].ids[-1] == TOKENIZER.token_id("<|endoftext|>")


@given(st.text(st.sampled_from("ab (){}\n"), min_size=1, max_size=600), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_pieces_join_to_the_text(text: str, most: int) -> None:
    pieces = list(split(text, TOKENIZER, most))
    assert "".join(piece for piece, _ in pieces) == text
    assert all(ids == TOKENIZER.encode(piece) for piece, ids in pieces)
    assert all(len(ids) <= most for _, ids in pieces)


def test_pieces_begin_where_definitions_do() -> None:
    text = "".join(f"def function_{i}(x):\n    y = x + {i}\n    return y\n\n\n" for i in range(40))
    pieces = [piece for piece, _ in split(text, TOKENIZER, 300)]
    assert len(pieces) >= 5
    assert all(piece.startswith("def ") for piece in pieces)


def test_chance_hangs_on_seed_and_id_alone() -> None:
    recipe, documents = ExampleRecipe(), [document(PYTHON, name=str(i)) for i in range(20)]
    one = [make_examples(each, recipe, TOKENIZER) for each in documents]
    again = [make_examples(each, recipe, TOKENIZER) for each in reversed(documents)]
    assert one == again[::-1]
    assert len({repr(examples) for examples in one}) > 10
    assert one != [make_examples(each, recipe.model_copy(update={"seed": 1}), TOKENIZER) for each in documents]


def test_shares_are_those_of_the_recipe() -> None:
    recipe = ExampleRecipe(functions=0.25, fim=0.5, spm=0.3, syntax=0.0)
    found = [make_examples(document(PYTHON, name=str(i)), recipe, TOKENIZER) for i in range(600)]
    whole = [examples[0] for examples in found if len(examples) == 1]
    assert len(whole) / len(found) == pytest.approx(0.75, abs=0.06)
    assert sum(one.kind == "fim" for one in whole) / len(whole) == pytest.approx(0.5, abs=0.07)
    holes = [one for one in whole if one.kind == "fim"]
    mark = TOKENIZER.token_id(fim.SUFFIX)
    assert sum(one.ids[1] == mark for one in holes) / len(holes) == pytest.approx(0.3, abs=0.08)
    assert {(one.language, one.licence) for one in whole} == {("python", "MIT")}


def test_all_of_a_hole_may_be_trained_on() -> None:
    recipe = ExampleRecipe(functions=0, fim=1, fim_loss="all")
    [example] = make_examples(document(PYTHON), recipe, TOKENIZER)
    assert (example.kind, example.loss) == ("fim", 0)


def test_padding() -> None:
    for example in make_examples(document(PYTHON), ExampleRecipe(block_size=32), TOKENIZER):
        assert len(example.ids) % 32 == 0


def test_a_tokenizer_without_marks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no fill-in-the-middle tokens"):
        make_examples(document(PYTHON), ExampleRecipe(fim=1), made.sentencepiece())
    assert make_examples(document("", name="empty"), ExampleRecipe(), TOKENIZER) == []


def test_definitions_with_what_stands_above_them() -> None:
    first, second = definitions(document(PYTHON))
    assert first.startswith("# A comment above.\n@decorated(1, two=2)\ndef f(")
    assert first.endswith("return [a for a in y]\n")
    assert second.startswith("class A:")
    assert definitions(document("def (")) == definitions(document(C, "c")) == []


# --- where holes lie -------------------------------------------------------------------------------------------------


def test_nodes_of_python_are_its_parsers() -> None:
    kinds = _python(PYTHON)
    assert kinds is not None
    told = {kind: [PYTHON[begin:end] for begin, end in spans] for kind, spans in kinds.items()}
    statements = [node for node in ast.walk(ast.parse(PYTHON)) if isinstance(node, ast.stmt)]
    assert sorted(told["statement"]) == sorted(str(ast.get_source_segment(PYTHON, node)) for node in statements)
    assert 'x, y + 1, *rest, key="ü)"' in told["arguments"]
    assert "\"é\" + 'b'" in told["expression"]
    assert 'for i in range(3):\n        print(f"{i + x}", i)' in told["statement"]
    assert "i + x" not in told["expression"]  # in an f-string
    assert any(text.startswith('"""Doc."""') and text.endswith("[a for a in y]") for text in told["body"])
    assert _python("def (") is None


def test_nodes_of_other_languages() -> None:
    held = [C[begin:end] for begin, end in _brackets(C)]
    assert {"void", "x > 0", "a, b[i]", "i", '"neither ("'} <= set(held)
    assert any(text.endswith("return f(a, b[i]);\n    ") for text in held)
    blocks = [C[begin:end] for begin, end in _blocks(C)]
    assert 'puts("neither (");\n        return f(a, b[i]);' in blocks
    assert any(text.startswith("if (x > 0)") and text.endswith("return 0;") for text in blocks)


@given(st.text(st.sampled_from("ab ()[]{}\n\t'#"), min_size=2, max_size=200), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_holes_are_inside_and_not_all(text: str, seed: int) -> None:
    drawn = random.Random(seed)
    for span in (random_span(text, drawn), syntax_span(text, "go", drawn), syntax_span(text, "python", drawn)):
        if span is not None:
            assert 0 <= span[0] < span[1] <= len(text)
            assert span[1] - span[0] < len(text)


def test_holes_are_of_many_lengths() -> None:
    drawn = random.Random(0)
    text = "x = 1\n" * 2000
    lengths = Counter(len(str(end - begin)) for begin, end in (random_span(text, drawn) for _ in range(400)))
    assert all(lengths[digits] > 60 for digits in (1, 2, 3))
    assert lengths[5] == 0


def test_a_piece_never_outgrows_its_example() -> None:
    text = "x = y\n" * 300
    recipe = ExampleRecipe(max_tokens=128, fim=1, functions=0)
    found = make_examples(replace(document(text), language="go"), recipe, TOKENIZER)
    assert max(len(one.ids) for one in found) <= 128
    assert all(len(ids) <= 128 - MARKS for _, ids in split(text, TOKENIZER, 128 - MARKS))
    assert isinstance(TOKENIZER, Tokenizer)
