"""The file of votes: kept, shared by processes, and never taken for what it is not."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from openmercury.errors import DataError
from openmercury.eval.arena.standings import first_preferred, standings
from openmercury.eval.arena.votes import Vote, Votes

VOTE = Vote("m1", "2026-11-25T10:00:00.000+00:00", "a", "b", "first", 1.0, 0.5, 10, 20, '{"text": "x"}', "one", "two")
ROOT = Path(__file__).parents[3]
WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from openmercury.eval.arena.votes import Votes
from tests.eval.arena.test_votes import VOTE
votes = Votes(Path(sys.argv[1]))
votes.enter("a", {}), votes.enter("b", {})
for number in range(100):
    votes.add(replace(VOTE, match=f"{sys.argv[2]} {number}"))
"""


def test_votes_come_back_as_they_were(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v.sqlite")
    later = replace(VOTE, match="m0", at="2026-11-25T11:00:00.000+00:00", outcome="bad")
    assert votes.add(later)
    assert votes.add(VOTE)
    assert Votes(votes.path).all() == [VOTE, later]


def test_the_first_vote_on_a_match_stands(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v.sqlite")
    assert votes.add(VOTE)
    assert not votes.add(replace(VOTE, outcome="second"))
    assert votes.all() == [VOTE]


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    running = [subprocess.Popen([*command, name], cwd=ROOT) for name in "xy"]
    assert [one.wait() for one in running] == [0, 0]
    assert len(Votes(path).all()) == 200


def test_an_outcome_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CHECK"):
        Votes(tmp_path / "v.sqlite").add(replace(VOTE, outcome="third"))  # type: ignore[arg-type]


def test_a_name_stands_for_one_system(tmp_path: Path) -> None:
    votes = Votes(tmp_path / "v.sqlite")
    votes.enter("a", {"weights": "12ab"})
    votes.enter("a", {"weights": "12ab"})
    with pytest.raises(DataError, match=r"another a \(weights 12ab, now 34cd\): give another file with --votes"):
        votes.enter("a", {"weights": "34cd"})


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, other, newer = (tmp_path / name for name in ("text", "other", "newer"))
    text.write_text("no database, but long enough to look at " * 10)
    with pytest.raises(DataError, match="not a database"):
        Votes(text)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE vote (x)")
    with pytest.raises(DataError, match="another program's"):
        Votes(other)
    Votes(newer)
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 2")
    with pytest.raises(DataError, match="form 2 and this version reads form 1"):
        Votes(newer)
    with pytest.raises(DataError, match="unable to open"):
        Votes(tmp_path / "no folder" / "v.sqlite")


def test_standings_count_and_time() -> None:
    votes = [
        VOTE,
        replace(VOTE, match="m2", outcome="second", second_seconds=1.5),
        replace(VOTE, match="m3", first="b", second="a", outcome="first", second_seconds=3.0),
        replace(VOTE, match="m4", outcome="bad"),
        replace(VOTE, match="m5", outcome="same"),
    ]
    found = {one.name: one for one in standings(votes)}
    a, b = found["a"], found["b"]
    assert (a.won, a.lost, a.tied, a.same) == (1, 2, 2, 1)
    assert (b.won, b.lost, b.tied, b.same) == (2, 1, 2, 1)
    assert a.seconds_p50 == 1.0  # of 1, 1, 3, 1, 1
    assert b.seconds_p50 == 0.5  # of 0.5, 1.5, 1, 0.5, 0.5
    assert a.tokens_per_second_p50 == 10.0  # of 10, 10, 20 ÷ 3, 10, 10
    assert b.score > 1000 > a.score
    assert first_preferred(votes) == (2, 3)
