"""`chat` from a pipe and at a prompt."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from openmercury.cli import chat, main
from openmercury.cli.options import Settings
from openmercury.engine.params import SamplingParams
from openmercury.llm import Step
from tests.cli.fakes import TEXT, FakeLLM, install

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> FakeLLM:
    return install(monkeypatch, FakeLLM("ok"))


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


ANSWER = {"role": "assistant", "content": "ok"}


def test_one_message_a_line(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    feed(monkeypatch, "öne\n\ntwo\r\n/reset\nthree\n/exit\nfour\n".encode())
    assert main.main(["chat", "--system", "Be brief."]) == 0
    assert capsys.readouterr() == ("ok\n" * 3, "")
    system = {"role": "system", "content": "Be brief."}
    assert [asked for _, asked, _ in llm.asked] == [
        [system, user("öne")],
        [system, user("öne"), ANSWER, user("two")],
        [system, user("three")],
    ]


def test_json_is_one_object_an_answer(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    feed(monkeypatch, b"one\ntwo")
    assert main.main(["chat", "--json"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["ok", "ok"]


def test_a_pipe_stops_at_the_first_error(llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    feed(monkeypatch, b"one\nb\xff\nthree\n")
    assert main.main(["chat"]) == 1
    out, err = capsys.readouterr()
    assert out == "ok\n"
    assert err.startswith("error: line 2 of stdin is not UTF-8: byte 0xff at offset 1")
    assert len(llm.asked) == 1
    feed(monkeypatch, b"too long\n")
    assert main.main(["chat"]) == 1


class Prompt:
    """`input()` that plays back lines and keys."""

    def __init__(self, *events: str | type[BaseException]) -> None:
        self.events = list(events)

    def __call__(self, _: str) -> str:
        event = self.events.pop(0)
        if isinstance(event, str):
            return event
        raise event


def in_terminal(monkeypatch: pytest.MonkeyPatch, llm: Any, *events: str | type[BaseException]) -> chat.Conversation:
    conversation = chat.Conversation(llm, Settings(), SamplingParams())
    monkeypatch.setattr("builtins.input", Prompt(*events))
    chat._in_terminal(conversation)
    return conversation


def test_ctrl_d_leaves_and_ctrl_c_at_the_prompt_does_not(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    conversation = in_terminal(monkeypatch, FakeLLM("ok"), KeyboardInterrupt, "  ", "one", EOFError)
    assert conversation.messages == [user("one"), ANSWER]
    out, err = capsys.readouterr()
    assert out == "ok\n\n"
    assert chat.HELP in err


def test_reset_and_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_terminal(monkeypatch, FakeLLM("ok"), "one", "/reset", "two", "/exit").messages == [user("two"), ANSWER]


def test_a_refused_message_costs_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    conversation = in_terminal(monkeypatch, FakeLLM("ok"), "too long", "b\udcff", "one", EOFError)
    assert conversation.messages == [user("one"), ANSWER]
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith("error: the prompt has 9 tokens")
    assert err[0].endswith("or /reset")
    assert err[1].startswith("error: the message is not UTF-8")


class Interrupted(FakeLLM):
    """Ctrl-C comes after the first piece of the first answer."""

    def _steps(self, params: SamplingParams) -> Iterator[Step]:
        steps = super()._steps(params)
        yield next(steps)
        if len(self.asked) == 1:
            raise KeyboardInterrupt
        yield from steps


def test_ctrl_c_stops_the_answer_and_keeps_what_was_written(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    conversation = in_terminal(monkeypatch, Interrupted(TEXT), "one", "two", EOFError)
    assert conversation.messages == [
        user("one"),
        {"role": "assistant", "content": TEXT[:8]},
        user("two"),
        {"role": "assistant", "content": TEXT},
    ]
    assert "(stopped)" in capsys.readouterr().err
