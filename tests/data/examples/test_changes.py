"""Rows of edits and merges: the server, given their message, sends the same prompt, and reads the answer as meant."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from openmercury.data.config import ExampleRecipe
from openmercury.data.document import Document
from openmercury.data.examples import make_edit_examples
from openmercury.data.examples.changes import Draft, hunks_of
from openmercury.data.examples.merges import KEPT, Hunk, applied, part, update_snippet
from openmercury.data.shards import Example
from openmercury.engine.params import SamplingParams
from openmercury.server import apply as apply_door
from openmercury.server import edit as edit_door
from openmercury.server.service import Service
from openmercury.text import edit
from tests.server import made

RECIPE = ExampleRecipe(max_tokens=6000, edits=3, no_edit=1.0, apply=1.0)
OLD = [f"def function_{i}(a):\n    b = a + {i}\n    return b\n" for i in range(12)]
NEW = [
    text.replace("return b", "return b * 2").replace("a)", "a, c)") if i in (1, 4, 8) else text
    for i, text in enumerate(OLD)
]
NEW[10:10] = ["def added():\n    return None\n"]


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(made.llm(context=8192), made.MODEL)


def pair(old: str, new: str, language: str = "python") -> tuple[Document, Document]:
    return Document("1:a", old, language, "MIT", "src/a.py"), Document("2:a", new, language, "MIT", "src/a.py")


def made_of(old: str, new: str, recipe: ExampleRecipe = RECIPE) -> list[Example]:
    return make_edit_examples(*pair(old, new), recipe, made.byte_level(chat_template=made.TEMPLATE))


def message_and_answer(example: Example) -> tuple[str, str]:
    tokenizer = made.byte_level(chat_template=made.TEMPLATE)
    assert isinstance(example.loss, int)
    assert example.ids[-1] == tokenizer.special["<|im_end|>"]
    prompt = tokenizer.decode(example.ids[: example.loss], special=True)
    message = prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    return message, tokenizer.decode(example.ids[example.loss : -1])


def test_edits_are_what_the_server_asks_and_reads(service: Service) -> None:
    params = SamplingParams(max_tokens=1024)
    found = [one for one in made_of("\n".join(OLD), "\n".join(NEW)) if one.kind == "edit"]
    assert len(found) == 4
    targets = []
    for example in found:
        message, answer = message_and_answer(example)
        asked, ids, _ = edit_door._prompt(service, message, params)
        assert ids == list(example.ids[: example.loss])  # type: ignore[misc]
        assert edit_door.content(answer, "stop", asked) == answer
        new = edit.read_edit(answer, asked)
        below = f"\n{asked.below}"
        targets.append(asked.above + (asked.region if new is None else new) + below)
        assert asked.history
        assert asked.path == "src/a.py"
        if new is None:
            assert answer == edit.NO_EDIT
            assert targets[-1] == "\n".join(NEW)
        else:
            assert set(targets[-1].split("\n")) <= {*"\n".join(OLD).split("\n"), *"\n".join(NEW).split("\n")}
            assert targets[-1] != asked.above + asked.region + below
    assert sum(target == "\n".join(NEW) for target in targets) >= 1


def test_history_leads_to_the_file_that_is_shown() -> None:
    """Changes told, undone from the last on, give the file as it was."""
    old, hunks = "\n".join(OLD), hunks_of("\n".join(OLD).split("\n"), "\n".join(NEW).split("\n"))
    assert len(hunks) == 4
    draft = Draft(old, hunks, "a.py", [2, 0, 3, 1], None)
    lines, _ = draft.lines(draft.made)
    assert lines == "\n".join(NEW).split("\n")
    for step in reversed(range(4)):
        lines = undone(lines, draft.diff(step))
    assert "\n".join(lines) == old


def undone(lines: list[str], diff: str) -> list[str]:
    names, header, *body = diff.split("\n", 3)[:2], *diff.split("\n")[2:]
    assert names == ["--- a/a.py", "+++ b/a.py"]
    start = int(header.split("+")[1].split(",")[0]) - 1
    new = [line[1:] for line in body if line[0] in " +"]
    assert lines[start : start + len(new)] == new
    return [*lines[:start], *(line[1:] for line in body if line[0] in " -"), *lines[start + len(new) :]]


def test_merges_are_what_the_server_asks_and_reads(service: Service) -> None:
    params = SamplingParams(max_tokens=4000)
    [example] = [one for one in made_of("\n".join(OLD), "\n".join(NEW)) if one.kind == "apply"]
    message, answer = message_and_answer(example)
    merge = edit.parse_merge(message)
    marks = edit.merge_marks(merge)
    ids, _ = apply_door._prompt(service, merge, params)
    assert ids == list(example.ids[: example.loss])  # type: ignore[misc]
    assert answer.endswith(f"\n{marks}")
    assert apply_door.Merged(merge).take(answer.removesuffix(f"\n{marks}"), "stop") == "\n".join(NEW)
    assert merge.original == "\n".join(OLD)
    assert "\n".join(slow_merge(merge.original.split("\n"), merge.update.split("\n"))) == "\n".join(NEW)
    assert merge.update.count(KEPT) >= 2


def slow_merge(original: list[str], update: list[str]) -> list[str]:
    """As a reader would: each run of lines between comments belongs where its first and last lines stand."""

    def place(lines: list[str]) -> int:
        found = [i for i in range(len(original)) if original[i : i + len(lines)] == lines]
        return found[0] if len(found) == 1 else -1

    runs: list[list[str]] = [[]]
    for line in update:
        runs = [*runs, []] if KEPT in line else [*runs[:-1], [*runs[-1], line]]
    merged, at = list[str](), 0
    for number, run in enumerate(runs):
        begin, end = 0, len(original)
        if number > 0:
            begin = next((place(run[:k]) for k in range(2, len(run) + 1) if place(run[:k]) >= 0), len(original))
        if number < len(runs) - 1:
            ends = [place(run[-k:]) + k for k in range(2, len(run) + 1) if place(run[-k:]) >= 0]
            end = ends[0] if ends else 0
        merged += [*original[at:begin], *run]
        at = end
    return merged + original[at:]


@st.composite
def changed(draw: st.DrawFn) -> tuple[list[str], list[Hunk]]:
    """A file that repeats itself a little, and hunks in it that do not touch."""
    lines = st.lists(st.integers(0, 99).map(str), max_size=4)
    old = draw(st.lists(st.integers(0, 99).map(str), min_size=10, max_size=60))
    hunks: list[Hunk] = []
    at = 0
    while len(hunks) < draw(st.integers(1, 4)):
        begin = at + draw(st.integers(0, 15))
        end = begin + draw(st.integers(0, 3))
        if end > len(old):
            break
        hunks.append(Hunk(begin, end, [f"new {line}" for line in draw(lines)]))
        at = end + 1
    return old, hunks


@given(changed())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_a_snippet_has_one_merge(given_: tuple[list[str], list[Hunk]]) -> None:
    old, hunks = given_
    update = update_snippet(old, hunks, "python")
    assume(update is not None)
    assert update is not None
    assert slow_merge(old, update.split("\n")) == applied(old, hunks)


@given(changed(), st.integers(10, 200), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_a_part_is_a_file_with_whole_hunks(given_: tuple[list[str], list[Hunk]], room: int, seed: int) -> None:
    old, hunks = given_
    assume(hunks)
    lines, inside = part(old, hunks, room, random.Random(seed))
    assert inside
    rest = [hunk for hunk in hunks if hunk.lines in [each.lines for each in inside]]
    assert len(rest) >= len(inside)
    assert any(list(lines) == old[i : i + len(lines)] for i in range(len(old) - len(lines) + 1))
    for hunk in inside:
        assert 0 <= hunk.begin <= hunk.end <= len(lines)


def test_a_long_file_gives_a_part_that_fits() -> None:
    functions = [f"def function_{i}(a):\n    value = a + {i}\n    return value\n" for i in range(300)]
    changed_ = [
        text.replace("return value", "return value + 1") if i % 60 == 7 else text for i, text in enumerate(functions)
    ]
    recipe = RECIPE.model_copy(update={"max_tokens": 3000, "edits": 1, "no_edit": 0.0})
    kinds = {one.kind: one for one in made_of("\n".join(functions), "\n".join(changed_), recipe)}
    assert set(kinds) == {"edit", "apply"}
    assert all(len(one.ids) <= 3000 for one in kinds.values())
    merge = edit.parse_merge(message_and_answer(kinds["apply"])[0])
    assert merge.original.startswith("def ")
    assert merge.original in "\n".join(functions)


def test_what_gives_nothing() -> None:
    old = "\n".join(OLD)
    assert made_of(old, old) == []
    assert made_of(old, old.replace("\n", "\r\n")) == []
    assert made_of("\n".join(map(str, range(4000))), "\n".join(map(str, range(5000, 9000)))) == []
    tags = "x = '<|code_to_edit|>'\n"  # would be taken for the region
    assert {one.kind for one in made_of(tags + old, tags + "\n".join(NEW))} == {"apply"}
    assert update_snippet(["a", f"# {KEPT}", "b"], [Hunk(0, 1, ["c"])], "python") is None
    assert update_snippet(["a"] * 40, [Hunk(20, 20, ["c"])], "python") is None


def test_examples_hang_on_seed_and_ids_alone() -> None:
    old, new = "\n".join(OLD), "\n".join(NEW)
    assert made_of(old, new) == made_of(old, new)
    assert made_of(old, new) != made_of(old, new, RECIPE.model_copy(update={"seed": 1}))
    padded: list[Any] = made_of(old, new, RECIPE.model_copy(update={"block_size": 16}))
    assert all(len(one.ids) % 16 == 0 for one in padded)
