"""What a request asks for becomes a grammar and a prompt; its answer, however it is cut, becomes OpenAI's deltas."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest
from pydantic import ValidationError

from openmercury.engine.params import SamplingParams
from openmercury.llm import LLM
from openmercury.server.errors import ApiError
from openmercury.server.structured import Reader, Structured, StructuredFields, plan
from openmercury.text.grammar import Grammars
from tests.server import made

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["Paris", 'Sao "P" {]']}},
        },
        "strict": True,
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
PERSON = {"type": "json_schema", "json_schema": {"name": "p", "schema": {"type": "integer"}, "strict": True}}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return made.llm()


@pytest.fixture(scope="module")
def grammars(llm: LLM) -> Grammars:
    return Grammars(llm.tokenizer, llm.config.eos_ids)


def planned(grammars: Grammars, *, stops: bool = False, **fields: Any) -> Structured:
    return plan(StructuredFields.model_validate(fields), grammars, stops=stops)


def refusal(grammars: Grammars, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        planned(grammars, **fields).constraint()
    assert error.value.status == 400
    return error.value


# --- what is allowed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({}, ["hello <tool_call>"], []),
        ({"response_format": {"type": "json_object"}}, ['{"a": [1, null]}', '{\n  "a": {}\n}'], ["[]", "1", "{} x"]),
        ({"response_format": PERSON}, ["12"], ["x", "1.5", '"1"']),
        ({"structured_outputs": {"choice": [string.punctuation, "é\n日", "a b"]}}, ["a b", "é\n日"], ["a", "ab"]),
        ({"structured_outputs": {"regex": "[ab]+"}}, ["abba"], ["abc", ""]),
        ({"structured_outputs": {"grammar": 'start: "x"+'}}, ["xx"], ["xy"]),
        ({"structured_outputs": {"json": {"type": "null"}}}, ["null"], ["nil"]),
        (
            {"tools": [WEATHER, CLOCK]},
            ["free text", "", f"I ask.\n{CALL}", f"{CALL}\n{OTHER}"],
            [
                "<tool_call>",
                f"{CALL} and more",
                "<tool_call> free",
                CALL.replace("3", "30"),
                CALL.replace("weather", "x"),
            ],
        ),
        ({"tools": [WEATHER, CLOCK], "tool_choice": "required"}, [CALL, f"{OTHER}\n{CALL}"], ["text", f"text\n{CALL}"]),
        ({"tools": [WEATHER], "parallel_tool_calls": False}, [CALL], [f"{CALL}\n{CALL}"]),
        (
            {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
            [OTHER],
            [CALL, f"{OTHER}\n{OTHER}", "text"],
        ),
        ({"tools": [WEATHER], "response_format": PERSON}, ["7", CALL], ["text", f"7\n{CALL}"]),
        ({"tools": [WEATHER], "tool_choice": "none"}, ["anything <tool_call>"], []),
    ],
)
def test_the_grammar_lets_through_what_was_asked_for(
    grammars: Grammars, fields: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    structured = planned(grammars, **fields)
    for text in good:
        assert structured.whole(text), text
    for text in bad:
        assert not structured.whole(text), text


def test_tools_are_shown_without_what_is_no_concern_of_the_model(grammars: Grammars) -> None:
    (shown, bare) = planned(grammars, tools=[WEATHER, CLOCK]).tools
    assert shown["function"] == {name: fact for name, fact in WEATHER["function"].items() if name != "strict"}
    assert bare == CLOCK
    assert planned(grammars, tools=[WEATHER], tool_choice="none").tools == ()


def test_the_model_is_told_the_form(grammars: Grammars) -> None:
    structured = planned(grammars, response_format=PERSON)
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How old?"}
    assert [m["role"] for m in structured.prompt([user])] == ["system", "user"]
    first = structured.prompt([system, user])[0]["content"]
    assert first.startswith("Be brief.\n\n")
    assert '{"type": "integer"}' in first
    assert planned(grammars).prompt([user]) == [user]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [CLOCK], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"response_format": PERSON, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": {"type": "x"}}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, None),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}, "strict": True}}]},
            "tools",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    grammars: Grammars, fields: dict[str, Any], param: str | None
) -> None:
    assert refusal(grammars, **fields).param == (param or "tools.0.function.parameters")


def test_malformed_fields_are_refused() -> None:
    for fields in (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "web_search"}]},
        {"tool_choice": "sometimes"},
        {"response_format": {"type": "xml"}},
        {"structured_outputs": {"choice": []}},
    ):
        with pytest.raises(ValidationError):
            StructuredFields.model_validate(fields)


# --- the way back ----------------------------------------------------------------------------------------------------


def read(reader: Reader, text: str, rng: random.Random) -> list[dict[str, Any]]:
    """The deltas of a text that arrives in random pieces."""
    deltas = []
    while text:
        count = rng.randint(1, 6)
        deltas += reader.push(text[:count])
        text = text[count:]
    return deltas


def joined(deltas: list[dict[str, Any]]) -> tuple[str, list[tuple[str, str]]]:
    """As a client puts them together: text and calls; an id comes with the first delta of a call only."""
    content, calls = "", list[list[str]]()
    for delta in deltas:
        content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                assert call["id"].startswith("call_")
                assert call["type"] == "function"
                calls.append([call["function"]["name"], ""])
            else:
                assert call.keys() == {"index", "function"}
                assert call["function"].keys() == {"arguments"}
            calls[call["index"]][1] += call["function"]["arguments"]
    return content, [(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize("seed", range(20))
def test_calls_come_back_however_they_arrive(grammars: Grammars, seed: int) -> None:
    rng = random.Random(seed)
    reader = planned(grammars, tools=[WEATHER, CLOCK]).reader()
    arguments = '{"city": "Sao \\"P\\" {]", "days": 3}'
    call = CALL.replace('{"city": "Paris", "days": 3}', arguments)
    text = f"I <tool> ask.\n{call}\n{OTHER}"
    deltas = read(reader, text, rng)
    rest, finish = reader.end("stop")
    content, calls = joined(deltas + rest)
    assert (content, finish) == ("I <tool> ask.", "tool_calls")
    assert calls == [("weather", arguments), ("clock", "{}")]
    message = reader.message
    assert message["content"] == content
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]] == calls
    assert len({c["id"] for c in message["tool_calls"]}) == 2


@pytest.mark.parametrize("seed", range(5))
def test_text_without_calls_comes_back_whole(grammars: Grammars, seed: int) -> None:
    for fields in ({}, {"tools": [WEATHER]}):
        reader = planned(grammars, **fields).reader()
        text = "a <tool_cal> \n b  \n<tool"
        deltas = read(reader, text, random.Random(seed))
        rest, finish = reader.end("stop")
        assert joined(deltas + rest) == (text, [])
        assert finish == "stop"
        assert reader.message == {"role": "assistant", "content": text, "refusal": None}


@pytest.mark.parametrize("cut", range(1, len(CALL)))
def test_a_call_that_was_cut_is_no_whole_one(grammars: Grammars, cut: int) -> None:
    by_limit = planned(grammars, tools=[WEATHER], tool_choice="required").reader()
    by_limit.push(CALL[:cut])
    assert by_limit.end("length")[1] == "length"
    by_stop = planned(grammars, tools=[WEATHER], tool_choice="required", stops=True).reader()
    by_stop.push(CALL[:cut])
    assert by_stop.end("stop")[1] == "length"
    assert "tool_call" not in (by_stop.message["content"] or "")


def test_json_that_a_stop_string_cut_is_not_called_whole(grammars: Grammars) -> None:
    for text, finish in [('{"a": 1', "length"), ('{"a": 1}', "stop")]:
        reader = planned(grammars, response_format={"type": "json_object"}, stops=True).reader()
        assert reader.push(text) == [{"content": text}]
        assert reader.end("stop") == ([], finish)


def test_snapshots_show_no_calls(grammars: Grammars) -> None:
    reader = planned(grammars, tools=[WEATHER]).reader()
    reader.push("I ask")
    assert reader.snapshot(" the sky") == "I ask the sky"
    assert reader.snapshot(" <tool_call>\n{") == "I ask "
    reader.push(".\n<tool_call>")
    assert reader.snapshot('\n{"name') == "I ask."


# --- with a model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ar", "verified", "diffusion", "auto"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_model_that_must_call_does(llm: LLM, grammars: Grammars, mode: Any, choice: Any) -> None:
    structured = planned(grammars, tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=False)
    params = SamplingParams(mode=mode, max_tokens=150, temperature=1.0, seed=3)
    request = llm.engine.request([5, 6, 7], params, constraint=structured.constraint())
    list(llm.engine.generate([request]))
    reader = structured.reader()
    reader.push(llm.tokenizer.decode(request.completion))
    assert reader.end(str(request.finish_reason))[1] == "tool_calls"
    (call,) = reader.message["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert arguments == {} if call["function"]["name"] == "clock" else set(arguments) == {"city", "days"}
