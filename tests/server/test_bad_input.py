"""Whatever is sent: the documented error in OpenAI's shape, and never a trace."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.made import MODEL, Served, serving

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "hi", "max_tokens": 2}
JSON = {"content-type": "application/json"}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"top_k": 0}, "top_k", "invalid_value"),
        ({"top_k": 1001}, "top_k", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"repetition_penalty": 5e-324}, "repetition_penalty", "invalid_value"),
        ({"repetition_penalty": 1e308}, "repetition_penalty", "invalid_value"),
        ({"stop": [""]}, "stop.0", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_value"),
        ({"mode": "magic"}, "mode", "invalid_value"),
        ({"mode": "ar", "threshold": 0.5}, "threshold", "invalid_value"),
        ({"threshold": 0.5, "steps": 4}, "threshold", "invalid_value"),
        ({"extra_body": {"mode": "magic"}}, "mode", "invalid_value"),
        ({"extra_body": {"max_tokens": 3}}, "max_tokens", "invalid_value"),
        ({"extra_body": 5}, "extra_body", "invalid_value"),
        ({"diffusing": True}, "diffusing", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "invalid_value"),
        ({"unheard_of": 1}, "unheard_of", "unknown_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "invalid_value"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0",
            "invalid_value",
        ),
        ({"messages": [{"role": "user", "content": "x", "sneaky": 1}]}, "messages.0.sneaky", "unknown_parameter"),
    ],
)
def test_a_wrong_value_is_refused_by_name(http: httpx.Client, change: dict[str, Any], param: str, code: str) -> None:
    content = json.dumps({**CHAT, **change})
    error = error_of(http.post("/v1/chat/completions", content=content, headers=JSON), 400)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"].startswith(param.split(".")[0])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, 2], "suffix": "x"}, "prompt"),
        ({"echo": True}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 4}, "best_of"),
    ],
)
def test_completions_refuse_by_name(http: httpx.Client, change: dict[str, Any], param: str) -> None:
    assert error_of(http.post("/v1/completions", json={**COMPLETION, **change}), 400)["param"] == param


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b'{"model": "\xff"}',
        b"[" * 100_000,
        b'{"model":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b"null",
        b"[]",
        b'"text"',
        b'{"n":' + b"9" * 5000 + b"}",
        b'{"temperature": NaN, "model": "x", "messages": []}',
    ],
    ids=lambda raw: raw[:12].decode(errors="replace"),
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/fim/completions"])
def test_bodies_that_are_no_request(http: httpx.Client, path: str, raw: bytes) -> None:
    error_of(http.post(path, content=raw, headers=JSON), 400)


def test_a_body_of_another_type_is_refused(http: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        error_of(http.post("/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": kind}), 400)


def test_unknown_models_paths_and_methods(http: httpx.Client) -> None:
    for name in ("gpt-4", "", "\N{SNOWMAN}" * 10, "../../etc/passwd"):
        error = error_of(http.post("/v1/chat/completions", json={**CHAT, "model": name}), 404)
        assert (error["code"], error["param"], error["message"]) == (
            "model_not_found",
            "model",
            f"model `{name}` not found",
        )
    broken = json.dumps({**CHAT, "model": "\ud800"})
    error_of(http.post("/v1/chat/completions", content=broken, headers=JSON), 404)
    error_of(http.get("/v1/nothing"), 404)
    error_of(http.get("/nothing"), 404)
    assert "POST" in error_of(http.get("/v1/chat/completions"), 405)["message"]
    error_of(http.delete("/v1/models"), 405)


def test_the_parameter_is_the_subject_of_the_sentence(http: httpx.Client) -> None:
    for change, told in (
        ({"messages": []}, "messages should have at least 1 item after validation, not 0, got []"),
        ({"stop": [""]}, "stop.0 should have at least 1 character, got ''"),
        ({"max_tokens": 0}, "max_tokens should be greater than or equal to 1, got 0"),
    ):
        answer = http.post("/v1/chat/completions", json={**CHAT, **change})
        assert error_of(answer, 400)["message"] == told


def test_whole_numbers_may_be_written_as_floats(http: httpx.Client) -> None:
    asked = json.dumps({**CHAT, "max_tokens": 3, "ignore_eos": True}).replace('"max_tokens": 3', '"max_tokens": 3.0')
    for more in ("", ', "n": 2.0, "seed": -1.0, "top_k": 5e0, "block_size": 4.0, "mode": "diffusion"'):
        answer = http.post("/v1/chat/completions", content=asked[:-1] + more + "}", headers=JSON)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 3 * len(answer.json()["choices"])
    for wrong in ("3.5", "1e300", "-1.0", "true"):
        refused = http.post("/v1/chat/completions", content=asked.replace("3.0", wrong), headers=JSON)
        assert error_of(refused, 400)["param"] == "max_tokens"


def test_prompts_that_cannot_be_answered(http: httpx.Client) -> None:
    long = {**CHAT, "messages": [{"role": "user", "content": "long " * 1000}]}
    assert error_of(http.post("/v1/chat/completions", json=long), 400)["code"] == "context_length_exceeded"
    long["stream"] = True  # refused before the stream begins, so with a status
    assert error_of(http.post("/v1/chat/completions", json=long), 400)["code"] == "context_length_exceeded"
    empty = {**CHAT, "messages": [{"role": "user", "content": None}]}
    error_of(http.post("/v1/chat/completions", json=empty), 400)
    broken = json.dumps({**CHAT, "messages": [{"role": "user", "content": "\ud800"}]})
    assert "surrogate" in error_of(http.post("/v1/chat/completions", content=broken, headers=JSON), 400)["message"]
    for prompt in ("", [], [10**9], [-1]):
        error_of(http.post("/v1/completions", json={**COMPLETION, "prompt": prompt}), 400)
    error_of(http.post("/v1/fim/completions", json={"model": MODEL, "prompt": "", "suffix": ""}), 400)


def test_a_body_beyond_the_limit() -> None:
    with serving(body_bytes=1000) as small, httpx.Client(base_url=small.url) as http:
        big = {**CHAT, "messages": [{"role": "user", "content": "x" * 2000}]}
        error_of(http.post("/v1/chat/completions", json=big), 413)
        error_of(http.post("/v1/chat/completions", content=(b"x" * 600 for _ in range(3)), headers=JSON), 413)
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_bug_shows_no_trace(monkeypatch: pytest.MonkeyPatch, server: Served, http: httpx.Client) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(server.service, "submit", broken)
    answer = http.post("/v1/chat/completions", json=CHAT)
    assert error_of(answer, 500)["type"] == "server_error"
    assert "secret" not in answer.text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("model", "messages", "max_tokens", "temperature", "stop", "n", "extra_body", "mode", "stream", "tools", "x")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_arbitrary_fields_never_break_the_server(http: httpx.Client, change: dict[str, Any]) -> None:
    answer = http.post("/v1/chat/completions", json={**CHAT, **change})
    assert answer.status_code in (200, 400, 404), answer.text
