"""Next edit, apply, decisions and feedback: what is asked of the model, and what is made of its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from openmercury.engine.params import SamplingParams
from openmercury.llm import LLM
from openmercury.server import apply
from openmercury.server.app import create_app
from openmercury.server.service import Piece, Service
from openmercury.server.settings import ServerSettings
from openmercury.text import chat, edit
from tests.server import made

REGION = "    def f(self):\n        return 1"
EDIT = edit.render_next_edit(edit.NextEdit("a.py", "class A:\n", REGION, "\nA().f()\n", cursor=4))
MERGE = edit.render_merge(edit.Merge("a = 1\nb = 2\n", "a = 3\n# ... existing code ..."))


@pytest.fixture(scope="module")
def llm() -> LLM:
    return made.llm(context=4096)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("told") / "feedback"


@pytest.fixture(scope="module")
def client(llm: LLM, folder: Path) -> Iterator[TestClient]:
    app = create_app(Service(llm, made.MODEL), ServerSettings(feedback=folder))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client


class Scripted:
    """An answer of these pieces, and what was asked for it."""

    def __init__(self, *texts: str, finish: str = "stop") -> None:
        self.texts, self.finish, self.asked = list(texts), finish, dict[str, Any]()

    def submit(self, ids: list[int], params: SamplingParams, **more: Any) -> Scripted:
        self.asked = {"ids": ids, "params": params, **more}
        return self

    def __aiter__(self) -> Scripted:
        return self

    async def __anext__(self) -> Piece:
        if not self.texts:
            raise StopAsyncIteration
        text = self.texts.pop(0)
        return Piece(text, 1, 1, (), None if self.texts else self.finish)  # type: ignore[arg-type]

    def abort(self) -> None:
        pass


def script(client: TestClient, monkeypatch: pytest.MonkeyPatch, *texts: str, finish: str = "stop") -> Scripted:
    scripted = Scripted(*texts, finish=finish)
    monkeypatch.setattr(client.app.state.service, "submit", scripted.submit)  # type: ignore[attr-defined]
    return scripted


def asking(message: str, **more: Any) -> dict[str, Any]:
    return {"model": made.MODEL, "messages": [{"role": "user", "content": message}], **more}


def streamed(text: str) -> list[dict[str, Any]]:
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    return [json.loads(each) for each in events]


# --- next edit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (f"```python\n{REGION}2\n```", f"```\n{REGION}2\n```"),
        ("```\ndef f(self):\n    return 12\n```", "```\n    def f(self):\n        return 12\n```"),
        (f"```\n{REGION}\n```", "None"),
        ("None", "None"),
    ],
)
def test_edit(client: TestClient, monkeypatch: pytest.MonkeyPatch, answer: str, content: str) -> None:
    script(client, monkeypatch, answer[:5], answer[5:])
    found = client.post("/v1/edit/completions", json=asking(EDIT)).json()
    assert found["object"] == "edit.completion"
    assert found["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    ]
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + 1
    script(client, monkeypatch, answer[:5], answer[5:])
    body = asking(EDIT, stream=True, stream_options={"include_usage": True})
    first, last = streamed(client.post("/v1/edit/completions", json=body).text)
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    ]
    assert last["usage"]["completion_tokens"] == 1


def test_an_edit_that_was_cut_short_suggests_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    script(client, monkeypatch, "```\n    def f(", finish="length")
    choice = client.post("/v1/edit/completions", json=asking(EDIT)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("None", "length")


def test_what_an_edit_asks_for(client: TestClient, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = script(client, monkeypatch, "None")
    client.post("/v1/edit/completions", json=asking(EDIT))
    params, decode = scripted.asked["params"], llm.tokenizer.decode
    assert (params.max_tokens, params.temperature, params.presence_penalty) == (1024, 0.2, 1.0)
    assert scripted.asked["ids"] == chat.render(llm.tokenizer, edit.edit_messages(edit.parse_next_edit(EDIT)))
    assert decode(scripted.asked["expected"], special=True) == f"```\n{REGION}\n```<|im_end|>"
    for mode in ("ar", "diffusion"):
        scripted = script(client, monkeypatch, "None")
        client.post("/v1/edit/completions", json=asking(EDIT, mode=mode))
        assert scripted.asked["expected"] is None


def test_a_long_file_is_cut_around_the_region(client: TestClient, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = script(client, monkeypatch, "None")
    lines = "".join(f"line {number}\n" for number in range(2000))
    message = edit.render_next_edit(edit.NextEdit("a.py", lines, "here", lines))
    answer = client.post("/v1/edit/completions", json=asking(message))
    assert answer.status_code == 200
    prompt = llm.tokenizer.decode(scripted.asked["ids"])
    assert "line 1999\n<|code_to_edit|>\nhere\n<|/code_to_edit|>\nline 0\n" in prompt
    assert 4096 - 1024 - 100 < len(scripted.asked["ids"]) <= 4096 - 1024


def test_messages_of_edits(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    script(client, monkeypatch, "None")
    older = asking(EDIT)
    older["messages"].insert(0, {"role": "system", "content": "You are Mercury, a next edit predictor."})
    older["messages"][1]["content"] = [{"type": "text", "text": EDIT}]
    assert client.post("/v1/v1/edit/completions", json=older).status_code == 200
    refused = [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": EDIT}] * 2}, "messages"),
        ({"messages": [{"role": "assistant", "content": EDIT}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": "fix it"}]}, None),
        ({"stream": True, "diffusing": True}, "diffusing"),
        ({"tools": []}, "tools"),
        ({"temperature": 3}, "temperature"),
    ]
    for wrong, param in refused:
        answer = client.post("/v1/edit/completions", json={**asking(EDIT), **wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), wrong


# --- apply -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [["a = 3\n", "b = 2"], ["a = 3\nb = 2\n"], ["a", " = 3", "\n", "b = 2", "\n"]])
def test_apply(client: TestClient, llm: LLM, monkeypatch: pytest.MonkeyPatch, pieces: list[str]) -> None:
    merged = "a = 3\nb = 2\n"
    scripted = script(client, monkeypatch, *pieces)
    found = client.post("/v1/apply/completions", json=asking(MERGE)).json()
    assert found["choices"][0]["message"]["content"] == merged
    params = scripted.asked["params"]
    assert (params.max_tokens, params.temperature, params.presence_penalty) == (8192, 0, 0)
    assert params.stop == ("\n```",)
    assert llm.tokenizer.decode(scripted.asked["ids"]).endswith("\n```\n")
    assert llm.tokenizer.decode(scripted.asked["expected"], special=True) == "a = 1\nb = 2\n```<|im_end|>"
    script(client, monkeypatch, *pieces)
    chunks = streamed(client.post("/v1/apply/completions", json=asking(MERGE, stream=True)).text)
    assert "".join(each["choices"][0]["delta"]["content"] for each in chunks) == merged
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_ends_of_merged_files() -> None:
    for original, newline, merged in (
        ("a", "\n", "b\n c"),
        ("a\n\n", "\n", "b\n c\n\n"),
        ("a\n", "\r\n", "b\r\n c\r\n"),
    ):
        end = apply.Merged(edit.Merge(original, "", newline))  # type: ignore[arg-type]
        assert end.take("b\n", None) + end.take(" c\n", "stop") == merged
    cut = apply.Merged(edit.Merge("a\n", ""))
    assert cut.take("b", "length") == "b"


def test_a_file_that_holds_code_blocks_gets_longer_marks(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = script(client, monkeypatch, "x")
    client.post("/v1/apply/completions", json=asking(edit.render_merge(edit.Merge("```\nx\n```", "y"))))
    assert scripted.asked["params"].stop == ("\n````",)


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "message"), [("edit", EDIT), ("apply", MERGE)])
def test_the_engine_answers(client: TestClient, path: str, message: str) -> None:
    texts = []
    for mode in ("ar", "verified", "auto"):
        body = asking(message, mode=mode, max_tokens=12, temperature=0)
        answer = client.post(f"/v1/{path}/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert 1 <= answer.json()["usage"]["completion_tokens"] <= 12
        texts.append(answer.json()["choices"][0])
    assert texts[0] == texts[1] == texts[2]


# --- decisions -------------------------------------------------------------------------------------------------------


def test_decisions(client: TestClient, llm: LLM) -> None:
    body = {
        "model": made.MODEL,
        "state": {"ticket": "The page is blank"},
        "questions": {
            "urgent": {"type": "noul", "instructions": "Is it urgent?", "criteria": {"true": "down", "false": None}},
            "team": {"type": "choice", "criteria": {"web": "pages", "webshop": None, "mail": ["letters"]}},
            "grade": {"type": "score", "criteria": ["bad", {"is": "fair"}, "good"], "instructions": ["Rate it"]},
        },
    }
    answer = client.post("/v1/decisions", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["model"] == made.MODEL
    assert found["usage"]["input_tokens"] > 300
    urgent, team, grade = (found["answers"][name] for name in ("urgent", "team", "grade"))
    assert urgent.keys() == {"type", "noul"}
    assert 0 < urgent["noul"] < 1
    assert math.isclose(sum(team["probabilities"].values()), 1)
    assert list(team["probabilities"]) == ["web", "webshop", "mail"]
    assert team["confidence"] == team["probabilities"][team["choice"]] == max(team["probabilities"].values())
    assert grade["legend"] == {"1": "bad", "2": {"is": "fair"}, "3": "good"}
    assert grade["score"] == pytest.approx(sum(int(level) * p for level, p in grade["probabilities"].items()))
    assert client.post("/v1/decisions", json=body).json() == found


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"questions": {}}, "questions"),
        ({"questions": {"a": {"type": "maybe"}}}, "questions.a"),
        ({"questions": {"a": {"type": "choice", "criteria": {}}}}, "questions.a.choice.criteria"),
        ({"questions": {"a": {"type": "score", "criteria": "good"}}}, "questions.a.score.criteria"),
        ({"state": 3}, None),
        ({"state": [{"type": "image_url", "image_url": {"url": "data:"}}]}, "state"),
        ({"state": "x" * 5000}, None),
        ({"stream": True}, "stream"),
        ({"model": "gpt"}, "model"),
    ],
)
def test_decisions_refused(client: TestClient, wrong: dict[str, Any], param: str | None) -> None:
    body = {"model": made.MODEL, "state": "x", "questions": {"a": {"type": "noul"}}, **wrong}
    answer = client.post("/v1/decisions", json=body)
    assert answer.status_code == (404 if param == "model" else 400)
    assert param is None or answer.json()["error"]["param"] == param


# --- feedback --------------------------------------------------------------------------------------------------------


def test_feedback(client: TestClient, folder: Path) -> None:
    told = {"request_id": "cmpl-1", "user_action": "accept", "provider_name": "zed", "provider_version": "1.0"}
    for user_action in ("accept", "reject"):
        assert client.post("/feedback", json={**told, "user_action": user_action, "more": 1}).status_code == 200
    assert client.post("/feedback", json={**told, "user_action": "shrug"}).status_code == 400
    kept = [json.loads(line) for line in (folder / "feedback.jsonl").read_text().splitlines()]
    assert [each["user_action"] for each in kept] == ["accept", "reject"]
    assert all(each.keys() == {*told, "time"} for each in kept)


# --- Mercury's client ------------------------------------------------------------------------------------------------


def test_the_client_takes_the_answers_by_its_strict_types() -> None:
    inceptionai = pytest.importorskip("inceptionai")
    with made.serving(made.llm(context=4096)) as served:
        mercury = inceptionai.Inception(api_key="x", base_url=served.url, _strict_response_validation=True)
        messages = [{"role": "user", "content": EDIT}]
        edited = mercury.edit.completions.create(model=made.MODEL, messages=messages, max_tokens=8, temperature=0)
        assert edited.object == "edit.completion"
        assert edited.choices[0].message.content == "None"
        decision = mercury.decisions.create(
            model=made.MODEL,
            state=["a"],
            questions={
                "noul": {"type": "noul"},
                "choice": {"type": "choice", "criteria": {"a": None, "b": "x"}},
                "score": {"type": "score", "criteria": ["low", "high"]},
            },
        )
        assert [type(each).__name__ for each in decision.answers.values()] == [
            "NoulAnswer",
            "ChoiceAnswer",
            "ScoreAnswer",
        ]
        mercury.close()
