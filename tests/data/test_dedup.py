"""Duplicates against a slow twin, and the screen against the close look that it spares."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import numpy as np
import pytest

from openmercury.data.config import DedupRecipe
from openmercury.data.decontaminate import BenchmarkIndex, Item
from openmercury.data.dedup import bands, digest, duplicates, jaccard, run_hashes, shingles, tuple_hashes, word_hashes
from openmercury.data.screen import Screen
from openmercury.errors import DataError

RECIPE = DedupRecipe()


def text(drawn: random.Random, words: int = 120) -> str:
    return " ".join(f"w{drawn.randrange(900)}" for _ in range(words))


def changed(text: str, drawn: random.Random, count: int) -> str:
    words = text.split()
    for _ in range(count):
        words[drawn.randrange(len(words))] = f"x{drawn.randrange(900)}"
    return " ".join(words)


def runs(text: str, size: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


def test_hashes_are_those_of_runs() -> None:
    drawn = random.Random(0)
    one = text(drawn)
    words = one.split()
    for size, found in zip((1, 5, 13), run_hashes(word_hashes(one), 1, 5, 13), strict=True):
        every = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
        assert found.tolist() == tuple_hashes(every, size).tolist()
        assert len(set(found.tolist())) == len(set(every))
    assert [len(found) for found in run_hashes(word_hashes("a b"), 2, 5)] == [1, 0]


def test_similarity_is_that_of_the_sets() -> None:
    drawn = random.Random(1)
    one = text(drawn)
    other = changed(one, drawn, 3)
    left, right = runs(one, 5), runs(other, 5)
    assert jaccard(shingles(one, 5), shingles(other, 5)) == pytest.approx(len(left & right) / len(left | right))
    assert jaccard(shingles("", 5), shingles("", 5)) == 0.0
    assert digest("a \nb") == digest("a\nb")
    assert digest("a\nb") != digest("a\n b")


def test_duplicates_are_those_of_a_slow_search() -> None:
    pytest.importorskip("rensa")
    drawn = random.Random(2)
    texts = []
    for _ in range(60):
        base = text(drawn)
        texts += [base, *(changed(base, drawn, drawn.randrange(12)) for _ in range(3))]
    drawn.shuffle(texts)
    sets = [shingles(one, 5) for one in texts]
    digests = np.array([np.frombuffer(digest(one), np.uint64) for one in texts])
    found = duplicates(digests, bands(sets, RECIPE, 0), RECIPE.threshold, lambda number: sets[number])

    kept: list[int] = []
    slow: dict[int, str] = {}
    for number, one in enumerate(texts):
        near = [other for other in kept if jaccard(sets[number], sets[other]) >= RECIPE.threshold]
        if one in texts[:number]:
            slow[number] = "exact duplicate"
        elif near:
            slow[number] = "near duplicate"
        else:
            kept.append(number)
    # LSH may miss a pair that is just above the threshold (5 % at 0.8), and never finds one below it.
    assert {number for number in found if number not in slow} == set()
    assert len(found) >= 0.95 * len(slow) > 20
    assert {number for number, why in slow.items() if why[0] == "e"} == {n for n, why in found.items() if why[0] == "e"}


def test_only_kept_documents_make_others_drop() -> None:
    pytest.importorskip("rensa")
    drawn = random.Random(3)
    chain = [text(drawn, 400)]
    for _ in range(6):
        chain.append(changed(chain[-1], drawn, 6))
    sets = [shingles(one, 5) for one in chain]
    assert all(jaccard(*pair) >= 0.8 for pair in pairwise(sets))
    digests = np.array([np.frombuffer(digest(one), np.uint64) for one in chain])
    found = duplicates(digests, bands(sets, RECIPE, 0), 0.8, lambda number: sets[number])
    kept = [number for number in range(len(chain)) if number not in found]
    assert 1 < len(kept) < len(chain)
    assert all(jaccard(sets[one], sets[other]) < 0.8 for one, other in pairwise(kept))


def test_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(DataError, match=r"pip install 'openmercury\[data\]'"):
        bands([np.arange(3, dtype=np.uint64)], RECIPE, 0)


SOLUTION = '''
def running(values, start=0):
    """Sum up."""
    found = []
    for value in values:
        if value > start:
            found.append(value)
        else:
            found.append(start)
        start = found[-1] * 2 + 1
    while len(found) > 10:
        found.pop()
    return [one for one in found if one is not None]
'''


@pytest.fixture(scope="module")
def index() -> BenchmarkIndex:
    drawn = random.Random(4)
    items = [Item("made", text(drawn, 60), text(drawn, 80), f"f{number}", text(drawn, 12)) for number in range(20)]
    return BenchmarkIndex.of([*items, Item("tree", text(drawn, 20), SOLUTION, "running", "sums up")])


def test_the_screen_lets_through_what_is_found(index: BenchmarkIndex) -> None:
    screen, drawn, hits = Screen(index), random.Random(5), 0
    for item in index.items:
        for part in (item.prompt, item.solution, item.description, text(drawn, 50)):
            words = part.split()
            for share in (1.0, 0.5, 0.3, 0.1):
                begin = drawn.randrange(1 + int(len(words) * (1 - share)))
                piece = " ".join(words[begin : begin + int(len(words) * share)])
                candidate = f"{text(drawn, 30)}\n{piece}\n{text(drawn, 30)}"
                close = index.find("", code=candidate)
                assert screen.find(candidate, "markdown") == close
                hits += close is not None
    assert hits > 50


@pytest.mark.parametrize(
    ("code", "found"),
    [
        (SOLUTION, True),
        (SOLUTION.replace("value", "v").replace("found", "result").replace("running", "other"), True),
        (f"class A:\n    if 1:\n        def g(self):\n            pass\n{SOLUTION}", True),
        (
            SOLUTION.replace("value", "v").replace("found", "result").replace("running", "other").replace("* 2", "* 3"),
            False,
        ),
        ("def running(values, start=0):\n    return 1\n", False),
    ],
)
def test_the_screen_knows_functions(index: BenchmarkIndex, code: str, found: bool) -> None:
    assert (index.find("", code=code) is not None) == found
    assert (Screen(index).find(code, "python") is not None) == found
