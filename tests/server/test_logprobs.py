"""Log probabilities: those of a plain forward over prompt and answer, in OpenAI's shapes, whatever the mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from openmercury.text import chat
from tests.server.made import MODEL, Served, llm

HELLO: Any = [{"role": "user", "content": "def f(x):"}]
ASK: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "logprobs": True, "top_logprobs": 3}


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("mode", ["ar", "diffusion", "auto"])
def test_they_are_those_of_the_clean_side(client: openai.OpenAI, server: Served, mode: str) -> None:
    whole = client.chat.completions.create(**ASK, extra_body={"mode": mode}).choices[0]
    assert whole.logprobs is not None
    content = whole.logprobs.content
    assert content is not None
    assert len(content) == 12
    assert b"".join(bytes(each.bytes or ()) for each in content).decode(errors="replace") == whole.message.content
    model, prompt = llm(), chat.render(server.service.llm.tokenizer, HELLO)
    first = {token: model.log_likelihoods(prompt, [[token]])[0] for token in range(380)}
    best = sorted(first.values(), reverse=True)
    assert content[0].logprob == pytest.approx(best[0])  # greedy
    assert [each.logprob for each in content[0].top_logprobs] == pytest.approx(best[:3])
    assert all(each.logprob == pytest.approx(each.top_logprobs[0].logprob) for each in content)


def test_a_stream_has_them_in_its_last_chunk(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK).choices[0]
    *before, last = client.chat.completions.create(**ASK, stream=True)
    assert all(chunk.choices[0].logprobs is None for chunk in before)
    assert last.choices[0].logprobs.content == whole.logprobs.content


def test_completions_in_their_older_shape(client: openai.OpenAI) -> None:
    ask: Any = {"model": MODEL, "prompt": "def f(x):", "max_tokens": 8, "logprobs": 2}
    whole = client.completions.create(**ask).choices[0]
    assert whole.logprobs is not None
    assert whole.logprobs.tokens is not None
    assert len(whole.logprobs.tokens) == len(whole.logprobs.token_logprobs or ()) == 8
    assert whole.logprobs.text_offset is not None
    assert whole.logprobs.text_offset[0] == 0
    stopped = client.completions.create(**ask, stop=[whole.text[2:4]]).choices[0]
    assert stopped.logprobs is not None
    assert len(stopped.logprobs.tokens or ()) < 8


def test_what_does_not_go_together(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="top_logprobs goes with logprobs"):
        client.chat.completions.create(model=MODEL, messages=HELLO, top_logprobs=2)
