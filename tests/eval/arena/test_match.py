"""Matches: blind, shuffled, and warm for both; and where their prompts come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openmercury.errors import DataError, EmptyPromptError, RequestFailedError
from openmercury.eval.arena import prompts
from openmercury.eval.tasks.base import Continue, Fill
from tests.eval.arena.fakes import Echo, arena

PROMPT = Fill("def f():\n    return ", "\n")


def test_both_are_asked_alike_and_first_unmeasured(tmp_path: Path) -> None:
    held = arena(tmp_path)
    match = held.match(PROMPT)
    for one in held.contestants:
        assert isinstance(one.system, Echo)
        assert [(ask.prompt, ask.max_tokens) for ask in one.system.asked] == [(PROMPT, 1), (PROMPT, 64)]
        assert one.system.asked[1].seed == held.contestants[0].system.asked[1].seed  # type: ignore[attr-defined]
    assert not match.same
    assert {answer.text for answer in match.answers} == {"left", "right"}


def test_places_are_random_and_answers_stay_with_their_names(tmp_path: Path) -> None:
    held = arena(tmp_path)
    first = [held.match(PROMPT) for _ in range(200)]
    assert all((one.first.name == "a") == (one.answers[0].text == "left") for one in first)
    assert 70 < sum(one.first.name == "a" for one in first) < 130


def test_a_vote_keeps_names_times_and_texts(tmp_path: Path) -> None:
    held = arena(tmp_path)
    match = held.match(PROMPT)
    vote = held.vote(match, "second")
    assert held.votes.all() == [vote]
    assert vote.winner == match.second.name
    seconds = {vote.first: vote.first_seconds, vote.second: vote.second_seconds}
    assert seconds == {"a": 1.0, "b": 0.5}
    assert json.loads(vote.prompt)["prefix"] == PROMPT.prefix
    assert held.match(PROMPT).id != match.id


def test_equal_texts_leave_nothing_to_choose(tmp_path: Path) -> None:
    assert arena(tmp_path, marks=("x", "x")).match(PROMPT).same


def test_who_cannot_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestFailedError, match=r"[ab] cannot answer this prompt: too long"):
        arena(tmp_path).match(Fill("unable", ""))


def test_other_systems_under_known_names_are_refused(tmp_path: Path) -> None:
    arena(tmp_path)
    arena(tmp_path)
    with pytest.raises(DataError, match="another b"):
        arena(tmp_path, marks=("left", "changed"))


def test_prompts_of_a_file(tmp_path: Path) -> None:
    rows = [
        {"prefix": "a", "suffix": "b"},
        {"prompt": "c"},
        {"prompt": "d", "suffix": "e", "task_id": 1},
        {"prefix": "f"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + '\n{"prompt": "g\u2028h"}\n')
    assert prompts.read(path) == [Fill("a", "b"), Continue("c"), Fill("d", "e"), Fill("f", ""), Continue("g\u2028h")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no prompt"),
        ("{", "line 1 is not JSON"),
        ('{"prompt": "a"}\n[1]', "line 2 should hold texts"),
        ('{"question": "a"}', "line 1 should hold texts"),
        ('{"prompt": 1}', "line 1 should hold texts"),
        ('{"prompt": "a", "prefix": "b"}', "line 1 should hold texts"),
        (b"\xff", "cannot be read"),
    ],
)
def test_broken_files_are_named(text: str | bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=told):
        prompts.read(path)


def test_pasted_code() -> None:
    assert prompts.marked("a <FILL> b", "<FILL>") == Fill("a ", " b")
    assert prompts.marked("a b", "<FILL>") == Continue("a b")
    with pytest.raises(EmptyPromptError):
        prompts.marked("<FILL>", "<FILL>")
