"""LiteLLM's routes to the server: Mercury's own, and the one for OpenAI's API. Needs the extra `conformance`."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.server.made import MODEL, Served, finished

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise it fetches prices when it is imported
litellm: Any = pytest.importorskip("litellm", reason="needs the extra `conformance`")

ROUTES = ("inception", "openai", "hosted_vllm")
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA, "strict": True}}]


@pytest.fixture(params=ROUTES)
def ask(server: Served, request: pytest.FixtureRequest) -> dict[str, Any]:
    return {
        "model": f"{request.param}/{MODEL}",
        "messages": [{"role": "user", "content": "def f(x):"}],
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "max_tokens": 20,
        "temperature": 0,
        "num_retries": 0,
    }


def test_streams_join_to_the_whole_answer_sync_and_async(ask: dict[str, Any]) -> None:
    whole = litellm.completion(**ask)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 20
    text = whole.choices[0].message.content
    assert text
    chunks = list(litellm.completion(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == 20

    async def talk() -> tuple[str, str]:
        answer = await litellm.acompletion(**ask)
        parts = [part.choices[0].delta.content or "" async for part in await litellm.acompletion(**ask, stream=True)]
        return answer.choices[0].message.content, "".join(parts)

    assert finished(talk()) == (text, text)


def test_structured_answers(ask: dict[str, Any]) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    answer = litellm.completion(**{**ask, "max_tokens": 200}, response_format=shape).choices[0]
    assert answer.finish_reason == "length" or 0 <= json.loads(answer.message.content)["a"] <= 99
    called = {**ask, "max_tokens": 200, "tools": TOOLS, "tool_choice": "required"}
    answer = litellm.completion(**called).choices[0]
    assert answer.finish_reason in ("tool_calls", "length")
    if answer.finish_reason == "tool_calls":
        assert answer.message.tool_calls[0].function.name == "add"
    last = list(litellm.completion(**called, stream=True))[-1]
    assert last.choices[0].finish_reason == answer.finish_reason


def test_settings_of_the_decoder(ask: dict[str, Any]) -> None:
    text = litellm.completion(**ask).choices[0].message.content
    assert litellm.completion(**ask, extra_body={"mode": "ar"}).choices[0].message.content == text
    assert litellm.completion(**ask, reasoning_effort="high").choices[0].message.content == text


def test_error_classes(ask: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError, match="not found"):
        litellm.completion(**{**ask, "model": ask["model"].replace(MODEL, "nothing")})
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**{**ask, "temperature": 5})


@pytest.mark.parametrize("ask", ["inception"], indirect=True)
def test_what_only_mercurys_route_has(ask: dict[str, Any], server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = litellm.completion(**ask, extra_body={"mode": "diffusion"}).choices[0].message.content
    shown = ""
    for chunk in litellm.completion(**ask, stream=True, diffusing=True):
        shown = chunk.choices[0].delta.content or shown
    assert shown == whole
    assert litellm.completion(**ask, realtime=True, reasoning_summary=True).choices[0].message.content
    monkeypatch.setenv("INCEPTION_API_BASE", f"{server.url}/v1")
    monkeypatch.setenv("INCEPTION_API_KEY", "none")
    found = {name: ask[name] for name in ("messages", "max_tokens")}
    assert litellm.completion(model="inception/mercury-2", **found).choices[0].message.content


@pytest.mark.parametrize(
    ("route", "path"), [("text-completion-inception", "/v1/fim"), ("text-completion-openai", "/v1")]
)
def test_fill_in_the_middle(server: Served, route: str, path: str) -> None:
    ask = {
        "model": f"{route}/{MODEL}",
        "prompt": "def f(x):\n    ",
        "suffix": "\n\nprint(f(1))",
        "api_base": server.url + path,
        "api_key": "none",
        "max_tokens": 20,
        "num_retries": 0,
    }
    whole = litellm.text_completion(**ask)
    assert whole.usage.completion_tokens > 0
    chunks = litellm.text_completion(**ask, stream=True)
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == whole.choices[0].text
