"""`arena` as a person meets it: blind until the vote, one sentence for every mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from openmercury.cli import arena, arena_screen, main
from openmercury.eval.arena.match import Contestant
from openmercury.eval.arena.page import Page
from openmercury.eval.arena.votes import Votes
from tests.eval.arena.fakes import Echo
from tests.eval.made import write_checkpoint

LEFT, RIGHT = "return a + b", "return b\x1b[31m[red]"


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    return tmp_path / "votes.sqlite"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "p.jsonl"
    rows = [{"prefix": f"def add_{number}(a, b):\n    ", "suffix": "\n"} for number in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_screen, "need_person", lambda: None)


def answering(monkeypatch: pytest.MonkeyPatch, left: str = LEFT, right: str = RIGHT) -> None:
    pair = Contestant("nano@ar", Echo(left, 1.0)), Contestant("nano@diffusion", Echo(right, 0.5))
    monkeypatch.setattr(arena, "_contestants", lambda *_: pair)


def pressing(monkeypatch: pytest.MonkeyPatch, keys: Sequence[str]) -> list[str]:
    """Presses the keys in turn; what is left of them is returned."""
    left = list(keys)
    monkeypatch.setattr(typer, "getchar", lambda: left.pop(0))
    return left


def run(votes: Path, *words: object) -> int:
    return main.main(["arena", *map(str, words), "--votes", str(votes)])


def test_votes_are_blind_and_kept(
    person: None, votes: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch)
    shown: list[str] = []
    keys = iter(["x", "1", "S", "T"])

    def press() -> str:
        shown.append(capsys.readouterr().out)
        return next(keys)

    monkeypatch.setattr(typer, "getchar", press)
    assert run(votes, "ar", "diffusion", "--prompts", prompts) == 0
    shown.append(capsys.readouterr().out)
    assert "return a + b" in shown[0]
    assert "⟨answer⟩" in shown[0]
    assert "nano@" not in shown[0] + shown[1]
    assert "0.50 s" not in shown[0] + shown[1]
    first, last = Votes(votes).all()
    assert f"1 is {first.first} (" in shown[2]
    assert "nano@" not in shown[3].replace("nano@ar (", "")  # a skipped match stays blind
    assert (first.outcome, last.outcome) == ("first", "tie")
    assert "There are no more prompts." in shown[4]
    assert "\x1b" not in "".join(shown)
    assert "[red]" in "".join(shown)  # not read as markup


@pytest.mark.parametrize("key", ["q", "\x03", "\x04", ""])
def test_leaving_keeps_what_was_voted(
    key: str, person: None, votes: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch)
    left = pressing(monkeypatch, ["2", key, "1"])
    assert run(votes, "ar", "diffusion", "--prompts", prompts) == 0
    assert left == ["1"]
    assert [vote.outcome for vote in Votes(votes).all()] == ["second"]


def test_equal_answers_and_prompts_without_answers_ask_nobody(
    person: None, votes: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, "x", "x")
    pressing(monkeypatch, [])
    prompts.write_text(prompts.read_text() + '{"prefix": "unable"}\n')
    assert run(votes, "ar", "diffusion", "--prompts", prompts) == 0
    assert [vote.outcome for vote in Votes(votes).all()] == ["same"] * 3
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("counted as a tie") == 3
    assert "cannot answer this prompt: too long" in out


def test_pasted_code(
    person: None, votes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch)
    pressing(monkeypatch, ["b"])
    lines = iter(["def f(a):\n", "    <FILL>\n", ".\n", "\n", ".\n"])
    monkeypatch.setattr(sys.stdin, "readline", lambda: next(lines, ""), raising=False)
    assert run(votes, "ar", "diffusion") == 0
    [vote] = Votes(votes).all()
    assert vote.outcome == "bad"
    assert json.loads(vote.prompt) == {"prefix": "def f(a):\n    ", "suffix": "", "stop": []}


def test_two_modes_of_one_folder(
    person: None, tmp_path: Path, votes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real, tiny network, loaded once: verified writes ar's text, so nobody is asked."""
    folder, prompts = write_checkpoint(tmp_path / "tiny"), tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "def f"}\n')
    loads, load = [], arena.generate.load
    monkeypatch.setattr(arena.generate, "load", lambda settings: loads.append(settings) or load(settings))
    words = [f"{folder}@ar", folder, "--prompts", prompts, "--max-tokens", 8, "--dtype", "float32", "--device", "cpu"]
    assert run(votes, *words) == 0
    assert len(loads) == 1
    assert run(votes, "--show", "--json") == 0
    told = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert told["votes"] == 1
    assert [(one["name"], one["same"], one["score"]) for one in told["standings"]] == [
        ("tiny@ar", 1, pytest.approx(1000)), ("tiny@verified", 1, pytest.approx(1000)),
    ]  # fmt: skip
    assert all(one["seconds_p50"] > 0 for one in told["standings"])


def test_show(votes: Path, prompts: Path, person: None, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(votes, "--show") == 1
    assert "vote first" in capsys.readouterr().err
    assert not votes.exists()
    answering(monkeypatch)
    pressing(monkeypatch, ["1", "1", "1"])
    assert run(votes, "ar", "diffusion", "--prompts", prompts) == 0
    monkeypatch.setenv("COLUMNS", "140")
    capsys.readouterr()
    assert run(votes, "--show") == 0
    out = capsys.readouterr().out
    assert "nano@diffusion" in out
    assert "3 votes; 1 was chosen in 3 of the 3 that chose." in out


def test_the_page_ends_without_an_error(
    votes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(page: Page) -> None:
        assert page.prompts is None
        raise KeyboardInterrupt

    answering(monkeypatch)
    monkeypatch.setattr(Page, "serve_forever", stop)
    assert run(votes, "ar", "diffusion", "--page", "--port", "0") == 0
    assert "the arena is at http://127.0.0.1:" in capsys.readouterr().out


def test_a_taken_port_is_named(
    votes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    answering(monkeypatch)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(votes, "ar", "diffusion", "--page", "--port", port) == 1
    assert f"port {port} cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ar"], "give two contestants"),
        (["ar", "ar"], "give two contestants that differ"),
        (["ar", "diffusion"], "the arena asks a person: run it in a terminal, or with --page"),
        (["ar", "http://127.0.0.1:1/v1"], "names no model: write BASE_URL#MODEL"),
        (["ar", "diffusion", "--json"], "--json goes with --show"),
        (["ar", "diffusion", "--port", "0"], "--port goes with --page"),
        (["ar", "diffusion", "--data", "x"], "--data goes with --task"),
        (["ar", "diffusion", "--api-key-env", "X"], "--api-key-env goes with a contestant that is a URL"),
        (["http://a/#x", "http://a/#y", "--dtype", "int8"], "--dtype goes with a contestant that is a folder"),
        (["ar", "diffusion", "--prompts", "x", "--task", "y"], "exclude each other"),
        (["--show", "ar"], "a contestant goes with voting"),
        (["--show", "--max-tokens", "9"], "--max-tokens goes with voting"),
    ],
)
def test_wrong_usage_exits_2(words: list[str], told: str, votes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(votes, *words) == 2
    assert told in capsys.readouterr().err
    assert not votes.exists()


def test_contestants_by_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMERCURY_MODEL", str(tmp_path / "mine"))
    assert arena.parse("diffusion") == ("mine@diffusion", str(tmp_path / "mine"), "diffusion", "")
    assert arena.parse("some/model@v2@ar") == ("model@v2@ar", "some/model@v2", "ar", "")
    assert arena.parse("some/model@v2") == ("model@v2@verified", "some/model@v2", "verified", "")
    assert arena.parse("http://h:1/v1#m/x") == ("m/x@h:1", "http://h:1/v1", None, "m/x")
