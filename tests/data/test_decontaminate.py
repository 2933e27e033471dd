"""Evaluation items are found verbatim, in part, renamed and paraphrased; other text is left alone."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from openmercury.data.decontaminate import BenchmarkIndex, Item, core_words, eval_folder, read_rows, tree_keys
from openmercury.errors import DataError

PROMPT = '''def weigh_apples(basket, limit):
    """Return how many apples of the basket can be sold before the limit of the market stall is reached.
    >>> weigh_apples([1, 2, 3], 4)
    2
    """
'''
BODY = """    total, sold = 0, 0
    for apple in sorted(basket):
        if total + apple > limit:
            break
        total += apple
        sold += 1
    return sold
"""
DESCRIPTION = "Return how many apples of the basket can be sold before the limit of the market stall is reached"


@pytest.fixture
def index() -> BenchmarkIndex:
    short = "Write a function to find the shared elements from two bags."
    return BenchmarkIndex.of(
        [
            Item("apples", PROMPT, PROMPT + BODY, "weigh_apples", DESCRIPTION),
            Item("bags", short, short, "share_bags", short),
        ]
    )


def test_finds_copies(index: BenchmarkIndex) -> None:
    assert index.find(PROMPT) == ("apples", "10-grams")
    assert index.find(f"Please explain:\n{BODY}") == ("apples", "10-grams")
    quoted = "the basket can be sold before the limit of the market stall is reached"
    assert index.find(f"Here is something else: {quoted}.") == ("apples", "13-gram")


def test_finds_renamed_code(index: BenchmarkIndex) -> None:
    renamed = (
        f"def weigh_apples(basket, limit):\n{BODY}".replace("total", "t").replace("sold", "s").replace("apple ", "a ")
    )
    renamed = renamed.replace("+ apple", "+ a").replace("+= apple", "+= a")
    assert tree_keys(renamed) & tree_keys(PROMPT + BODY)
    assert index.find("", code=renamed) is not None


def test_finds_descriptions(index: BenchmarkIndex) -> None:
    assert core_words("Write a function to find the shared elements from two bags.")[0] == "find"
    assert index.find("In Rust: find the shared elements from two bags, please") == ("bags", "description")
    assert index.find("Return the elements shared from the two bags") == ("bags", "paraphrase")
    assert index.find("", name="share_bags", description="Shared elements of bags") == ("bags", "name")


def test_leaves_other_text_alone(index: BenchmarkIndex) -> None:
    code = "def mean(values):\n    total = sum(values)\n    return total / len(values)\n"
    assert index.find("Write a function that returns the mean.", code=code, name="mean") is None
    assert index.find("", name="share_bags", description="Draw a red circle on a canvas") is None


def test_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    (tmp_path / "b.json.xz").write_bytes(lzma.compress(json.dumps({"x": {"a": 1}}).encode()))
    assert read_rows(tmp_path / "b.json.xz") == [{"a": 1}]
    with pytest.raises(DataError, match="restore"):
        read_rows(tmp_path / "none.jsonl.xz")
    monkeypatch.delenv("OPENMERCURY_EVAL_DATA", raising=False)
    with pytest.raises(DataError, match="OPENMERCURY_EVAL_DATA"):
        eval_folder(None)
    (tmp_path / "humaneval").mkdir()
    monkeypatch.setenv("OPENMERCURY_EVAL_DATA", str(tmp_path))
    assert eval_folder(None) == tmp_path
