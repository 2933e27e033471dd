"""Answers under a grammar are texts of it; a bad grammar is told in one sentence."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

import jsonschema
import numpy as np
import pytest

from openmercury.engine.params import SamplingParams
from openmercury.errors import InputError
from openmercury.llm import LLM
from openmercury.text.grammar import LONGEST, Follower, Grammars, json_grammar
from tests.server import made
from tests.text.schemas import schema

MODES = ("ar", "verified", "diffusion", "auto")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return made.llm()


@pytest.fixture(scope="module")
def grammars(llm: LLM) -> Grammars:
    return Grammars(llm.tokenizer, llm.config.eos_ids)


def answers(llm: LLM, followers: list[Follower], **params: Any) -> list[tuple[str, str | None]]:
    """Text and finish_reason of one answer under each."""
    engine = llm.engine
    requests = []
    for number, follower in enumerate(followers):
        asked = SamplingParams.model_validate({"seed": number, **params})
        prompt = llm.tokenizer.encode(f"def f{number}(x):")
        requests.append(engine.request(prompt, asked, constraint=follower))
    list(engine.generate(requests))
    engine.check_integrity()
    assert [request.error for request in requests] == [None] * len(requests)
    return [(llm.tokenizer.decode(request.completion), request.finish_reason) for request in requests]


def fulfil(llm: LLM, grammars: Grammars, count: int, **params: Any) -> int:
    """How many of so many random schemas get a whole answer; all those must be valid."""
    asked = [schema(random.Random(number), number * 6 // count) for number in range(count)]
    followers = [grammars.follow("json_schema", json_grammar(each, strict=True)) for each in asked]
    whole = 0
    for each, (text, finish) in zip(asked, answers(llm, followers, **params), strict=True):
        if finish == "stop":
            whole += 1
            checker = jsonschema.Draft202012Validator(each, format_checker=jsonschema.FormatChecker())
            checker.validate(json.loads(text))
        else:
            assert finish == "length"
    return whole


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_fulfil_their_schema(llm: LLM, grammars: Grammars, temperature: float) -> None:
    assert fulfil(llm, grammars, 20, temperature=temperature, max_tokens=80) >= 12


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["verified", "diffusion"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_fulfil_their_schema_long(llm: LLM, grammars: Grammars, temperature: float, mode: str) -> None:
    whole = fulfil(llm, grammars, 200, temperature=temperature, max_tokens=300, mode=mode)
    assert whole >= 150, whole


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["regex", "lark"])
def test_every_kind_of_grammar_holds_in_every_mode(llm: LLM, grammars: Grammars, mode: str, kind: Any) -> None:
    grammar = {"regex": "[a-c]{3}(-[0-9]{2}){2}", "lark": 'start: /[a-c]{3}/ part part\npart: "-" /[0-9]{2}/'}[kind]
    ((text, finish),) = answers(llm, [grammars.follow(kind, grammar)], mode=mode, max_tokens=40)
    assert finish == "stop"
    assert grammars.follow("regex", "[a-c]{3}(-[0-9]{2}){2}").reads(text)


def test_modes_write_the_same_text(llm: LLM, grammars: Grammars) -> None:
    """The automata of tests/engine are ours; this is llguidance with its rollbacks and forced tokens."""
    asked = [schema(random.Random(number), 3) for number in range(4)]
    texts = []
    for mode, forced in [("ar", False), ("verified", True), ("verified", False), ("diffusion", True), ("auto", True)]:
        followers = [grammars.follow("json_schema", json_grammar(each, strict=True), forced=forced) for each in asked]
        texts.append(answers(llm, followers, mode=mode, max_tokens=60))
    assert all(each == texts[0] for each in texts)


def test_drafts_are_read_to_the_first_wrong_one(llm: LLM, grammars: Grammars) -> None:
    follower = grammars.follow("json_schema", json_grammar(PERSON, strict=True), forced=False)
    good, words = llm.tokenizer.encode('{"name": "x'), 12
    out = np.full((len(good) + 3, words), -1, dtype=np.int32)
    wrong = llm.tokenizer.encode("\n")
    assert follower.allowed([*good, *wrong, *good], out[: len(good) + 2]) == good
    assert (out[len(good) + 1 :] == -1).all()
    bits = np.unpackbits(out[0].view(np.uint8), bitorder="little")
    assert bits[llm.tokenizer.vocab_size :].sum() == 0
    assert all(llm.tokenizer.decode([int(token)]).startswith("{") for token in np.flatnonzero(bits))
    assert follower.allowed(good, out[: len(good) + 1]) == good  # nothing was committed
    follower.commit(good)
    assert not follower.finished
    follower.commit(llm.tokenizer.encode('", "age": 7}'))
    assert follower.finished


def test_what_is_forced_stands_in_for_a_wrong_draft(llm: LLM, grammars: Grammars) -> None:
    follower = grammars.follow("regex", "(yes, of course|no, never)")
    out = np.zeros((9, 12), dtype=np.int32)
    start = llm.tokenizer.encode("y")
    kept = follower.allowed([*start, *start], out)
    assert "yes, of course".startswith(llm.tokenizer.decode(kept))
    assert len(kept) > 3


def test_an_answer_may_end_only_where_the_text_is_whole(llm: LLM, grammars: Grammars) -> None:
    follower, end = grammars.follow("regex", "ab?", forced=False), llm.config.eos_ids[0]
    out = np.zeros((2, 12), dtype=np.int32)
    assert follower.allowed([end], out) == []
    follower.commit(llm.tokenizer.encode("a"))
    assert follower.allowed([end], out) == [end]
    follower.commit([end])
    assert follower.finished


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"$ref": "#"}, "no text fulfils"),
        ({"$ref": "https://example.org/x.json"}, "cannot be used"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "pattern": "(a"}, "cannot be used"),
        ({"properties": {str(n): {} for n in range(5000)}}, "too big"),
    ],
)
def test_a_bad_schema_is_told_in_one_sentence(grammars: Grammars, given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        grammars.follow("json_schema", json_grammar(given, strict=True))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("the JSON schema", "no text"))


def test_deep_schemas_are_refused(grammars: Grammars) -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InputError, match="recursion"):
        grammars.follow("json_schema", json_grammar(deep, strict=True))


@pytest.mark.parametrize(("kind", "grammar"), [("regex", "(a"), ("regex", "[^\\s\\S]"), ("lark", "start: nothing")])
def test_a_bad_grammar_is_told_in_one_sentence(grammars: Grammars, kind: Any, grammar: str) -> None:
    with pytest.raises(InputError) as error:
        grammars.follow(kind, grammar)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="characters"):
        grammars.follow(kind, "a" * (LONGEST + 1))


def test_what_cannot_be_enforced_is_ignored_where_not_strict(grammars: Grammars) -> None:
    grammars.follow("json_schema", json_grammar({"type": "array", "uniqueItems": True}, strict=False))


def test_a_grammar_too_complex_to_follow_ends_its_own_request(llm: LLM, grammars: Grammars) -> None:
    wide = {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(1000)}}
    engine, follower = llm.engine, grammars.follow("json_schema", json_grammar(wide, strict=True))
    params = SamplingParams(max_tokens=30)
    request, beside = engine.request([5, 6], params, constraint=follower), engine.request([5, 6], params)
    list(engine.generate([request, beside]))
    assert isinstance(request.error, InputError)
    assert beside.error is None


def test_few_grammars_are_remembered(llm: LLM) -> None:
    few = Grammars(llm.tokenizer, llm.config.eos_ids, most=2)
    for text in ("a", "b", "a", "c"):
        few.follow("regex", text)
    assert [text for _, text in few._known] == ["a", "c"]


def test_threads_may_share_it(llm: LLM) -> None:
    shared, found = Grammars(llm.tokenizer, llm.config.eos_ids), list[list[int]]()

    def ask() -> None:
        out = np.zeros((12, 12), dtype=np.int32)
        found.append(shared.follow("regex", "yes, of course").allowed([], out))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(each == found[0] for each in found)
