"""JSON, schemas and tools over a socket, with the official clients: whole, streamed, and as snapshots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from inceptionai import Inception, pydantic_function_tool
from pydantic import BaseModel

from tests.server.made import MODEL, Served

ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Paris?"}], "temperature": 1, "seed": 3}


class Answer(BaseModel):
    city: Literal["Paris", "Rome", "Ängelholm"]
    sure: bool


class Weather(BaseModel):
    """Weather of a city"""

    city: Literal["Paris", "Rome"]


TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": Weather.model_json_schema(), "strict": False},
}


@pytest.fixture
def ours(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def theirs(server: Served) -> Iterator[Inception]:
    with Inception(base_url=server.url, api_key="none", max_retries=0, _strict_response_validation=True) as client:
        yield client


def test_both_clients_parse_a_schema(ours: openai.OpenAI, theirs: Inception) -> None:
    first: Any = ours.chat.completions.parse(**ASK, response_format=Answer)
    second: Any = theirs.chat.completions.parse(**_without_seed(), response_format=Answer)
    for answer in (first, second):
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.parsed.city in ("Paris", "Rome", "Ängelholm")


def _without_seed() -> Any:
    return {name: value for name, value in ASK.items() if name != "seed"}


@pytest.mark.parametrize("mode", ["ar", "verified", "diffusion", "auto"])
@pytest.mark.parametrize("seed", range(1, 2))
def test_every_mode_keeps_to_the_schema_or_says_length(ours: openai.OpenAI, mode: str, seed: int) -> None:
    schema = {**Answer.model_json_schema(), "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    ask = {**ASK, "seed": seed, "response_format": form, "extra_body": {"mode": mode}}
    whole = ours.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "stop"
    Answer.model_validate_json(whole.message.content)
    cut = ours.chat.completions.create(**ask, max_tokens=4).choices[0]
    assert cut.finish_reason == "length"
    cut = ours.chat.completions.create(**ask, stop=['"']).choices[0]
    assert cut.finish_reason == "length"  # a stop string inside JSON leaves no JSON
    chunks = list(ours.chat.completions.create(**ask, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_call_whole_streamed_and_diffusing(ours: openai.OpenAI, choice: Any) -> None:
    ask = {**ASK, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 120}
    whole = ours.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    [call] = whole.message.tool_calls
    assert call.function.name == "weather"
    Weather.model_validate_json(call.function.arguments)
    for more in ({}, {"extra_body": {"diffusing": True, "mode": "diffusion"}}):
        chunks = list(ours.chat.completions.create(**ask, stream=True, **more))
        calls = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()]
        assert [one.function.name for one in calls if one.id] == ["weather"]
        arguments = "".join(one.function.arguments or "" for one in calls)
        Weather.model_validate_json(arguments)
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        assert not chunks[-1].choices[0].delta.content


def test_mercury_s_client_takes_tools_and_answers_of_tools(theirs: Inception) -> None:
    tools: Any = [pydantic_function_tool(Weather)]
    ask = _without_seed() | {"tools": tools, "tool_choice": "required", "max_tokens": 200}
    first = theirs.chat.completions.create(**ask).choices[0]
    assert first.message.tool_calls
    with theirs.chat.completions.stream(**ask) as stream:
        final = stream.until_done().get_final_completion()
    assert final.choices[0].message.tool_calls
    call = first.message.tool_calls[0]
    messages: Any = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call.to_dict() if hasattr(call, "to_dict") else call]},
        {"role": "tool", "content": "12 degrees", "tool_call_id": call.id},
    ]
    again = theirs.chat.completions.create(model=MODEL, messages=messages, tools=tools, max_tokens=5)
    assert again.choices[0].finish_reason in ("length", "stop")


def test_json_object_and_what_cannot_be(ours: openai.OpenAI) -> None:
    answer = ours.chat.completions.create(**ASK, response_format={"type": "json_object"}, max_tokens=200).choices[0]
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    impossible: Any = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "no such"}, "strict": True},
    }
    with pytest.raises(openai.BadRequestError) as refused:
        ours.chat.completions.create(**ASK, response_format=impossible)
    assert str(refused.value.param).startswith("response_format")
