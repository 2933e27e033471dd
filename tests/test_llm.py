"""What `LLM` makes of requests that end early or fail: errors for one, outputs for many."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from openmercury.engine.config import EngineConfig
from openmercury.engine.engine import Engine
from openmercury.engine.params import SamplingParams
from openmercury.errors import ContextOverflowError, EmptyPromptError, RequestFailedError
from openmercury.eval.speed import Bench
from openmercury.llm import LLM
from tests import tiny
from tests.engine.test_engine import MODEL, POISON

PARAMS = SamplingParams(mode="ar", max_tokens=8, ignore_eos=True)


class Letters:
    """A tokenizer of 64 characters, from A on; # is the token that breaks the network."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        return [POISON if letter == "#" else ord(letter) - 65 for letter in text]

    def token_bytes(self, token: int) -> bytes:
        return bytes([token + 65])


def llm(config: EngineConfig | None = None) -> LLM:
    made = LLM.__new__(LLM)
    made.engine, made.config = Engine(MODEL, config), tiny.config()
    made.tokenizer = Letters()  # type: ignore[assignment]
    return made


def test_one_request_that_fails_raises() -> None:
    with pytest.raises(RequestFailedError, match="try dtype float32"):
        llm().generate("AB#", PARAMS)


def test_a_batch_keeps_what_did_not_fail() -> None:
    model = llm()
    alone = model.generate("ABC", PARAMS)
    good, bad, late = model.generate_batch(
        [[0, 1, 2], [0, POISON], [0, 1]], [PARAMS, PARAMS, PARAMS.model_copy(update={"deadline": 1e-9})]
    )
    assert (good.text, good.finish_reason, good.error) == (alone.text, "length", None)
    assert (bad.text, bad.finish_reason, bad.token_ids) == ("", "error", ())
    assert isinstance(bad.error, RequestFailedError)
    assert (late.finish_reason, late.error) == ("deadline", None)
    with pytest.raises(RequestFailedError):  # speed is not measured over answers that are none
        Bench(model, [[0, POISON]]).closed(PARAMS, 1, 1)


def test_a_deadline_gives_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    model = llm()
    for module in ("engine", "scheduler"):
        monkeypatch.setattr(
            f"openmercury.engine.{module}.time", SimpleNamespace(monotonic=lambda: clock.now, sleep=time.sleep)
        )
    whole, steps = model.generate("ABC", PARAMS), []
    for step in model.stream("ABC", PARAMS.model_copy(update={"deadline": 5})):
        steps.append(step)
        clock.now += 2
    output = steps[-1].output
    assert output is not None
    assert output.finish_reason == steps[-1].finish_reason == "deadline"
    assert 0 < len(output.text) < len(whole.text)
    assert whole.text.startswith(output.text)


def test_a_batch_larger_than_the_queue_waits_its_turn() -> None:
    narrow = llm(EngineConfig(max_requests=1, max_waiting=1))
    outputs = narrow.generate_batch([[0, 1, n] for n in range(5)], PARAMS)
    assert [output.finish_reason for output in outputs] == ["length"] * 5


def test_a_stop_string_before_the_fault_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llm()
    text = model.generate("ABC", PARAMS).text
    step = model.engine.step

    def failing(**given: Any) -> Any:
        moved = step(**given)
        for request in moved:
            if len(request.completion) == 4:
                request.fail(RequestFailedError("too late: nothing to do"))
        return moved

    monkeypatch.setattr(model.engine, "step", failing)
    output = model.generate("ABC", PARAMS.model_copy(update={"stop": (text[3],)}))
    assert (output.finish_reason, output.error) == ("stop", None)


def test_tokens_behind_a_stop_string_are_no_part_of_the_answer() -> None:
    model = llm(EngineConfig(steps_per_sync=4))  # the host sees four tokens at a time
    free = model.generate("ABC", PARAMS)
    stop = PARAMS.model_copy(update={"stop": (free.text[:2],)})
    [(number, output)] = model.stream_batch([[0, 1, 2]], stop)
    assert (number, output.text, output.finish_reason) == (0, "", "stop")
    assert output.token_ids == free.token_ids[:2]
    assert output.usage.completion_tokens == 2


def test_answers_come_as_they_end_and_each_by_its_own_ends() -> None:
    model = llm()
    long, short = PARAMS.model_copy(update={"ignore_eos": False}), PARAMS.model_copy(update={"max_tokens": 1})
    free = model.generate("ABC", PARAMS).token_ids
    found = list(
        model.stream_batch([[0, 1, 2], [0, 1, 2], [0, 1, 2]], [PARAMS, short, long], ends=[None, None, free[2:3]])
    )
    assert [number for number, _ in found] == [1, 2, 0]
    assert dict(found)[2].token_ids == free[: free.index(free[2]) + 1]
    assert dict(found)[2].finish_reason == "stop"


def test_log_likelihoods_of_what_ar_would_write_are_the_highest() -> None:
    made = llm()
    ids = [5, 6, 7]
    request = made.engine.request(ids, PARAMS)
    list(made.engine.generate([request]))
    others = [[token] for token in range(62)]
    found = made.log_likelihoods(ids, [request.completion[:1], *others])
    assert found[0] == max(found)
    assert sum(math.exp(each) for each in found[1:]) <= 1
    assert made.log_likelihoods(ids, []) == []
    for prompt, ends in (([], [[1]]), (ids, [[1], []])):
        with pytest.raises(EmptyPromptError):
            made.log_likelihoods(prompt, ends)
    with pytest.raises(ContextOverflowError, match="257"):
        made.log_likelihoods([5] * 255, [[1, 2]])
