"""OpenAI's own client, sync and async, against the server over a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.made import MODEL, Served, finished

HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "def f(x):"}]
ASK: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 20, "temperature": 0}


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def test_chat_is_whole_and_counts_its_cost(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 20
    extra: Any = answer.usage.model_extra
    assert extra["forwards"] > 0
    assert extra["tokens_per_forward"] == round(20 / extra["forwards"], 3)


def test_a_prompt_seen_before_is_cached(client: openai.OpenAI) -> None:
    long: Any = {**ASK, "messages": [{"role": "user", "content": "a prompt that nobody else has sent " * 3}]}
    counts = []
    for _ in range(2):
        usage = client.chat.completions.create(**long).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        counts.append(usage.prompt_tokens_details.cached_tokens)
    assert counts[0] == 0
    assert counts[1] == (usage.prompt_tokens - 1) // 16 * 16


def test_a_stream_joins_to_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK)
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20
    assert len({chunk.id for chunk in chunks}) == 1


def test_modes_agree_at_temperature_zero(client: openai.OpenAI) -> None:
    texts = {
        client.chat.completions.create(**ASK, extra_body={"mode": mode}).choices[0].message.content
        for mode in ("ar", "verified", "diffusion", "auto")
    }
    assert len(texts) == 1


def test_several_answers_and_seeds(client: openai.OpenAI) -> None:
    hot = {**ASK, "temperature": 1.5, "seed": 7, "n": 3}
    first, again = (client.chat.completions.create(**hot) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    chunks = list(client.chat.completions.create(**hot, stream=True))
    streamed = ["", "", ""]
    for chunk in chunks:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    unseeded = {
        client.chat.completions.create(**{**ASK, "temperature": 1.5}).choices[0].message.content for _ in range(3)
    }
    assert len(unseeded) > 1


def test_max_completion_tokens_wins(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, max_completion_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_stop_strings_end_the_text_and_stay_out_of_it(client: openai.OpenAI) -> None:
    text = client.chat.completions.create(**ASK).choices[0].message.content
    assert text is not None
    stop = text[6:8]
    expected = text[: text.find(stop)]
    for given in (stop, [stop, "never seen"]):
        answer = client.chat.completions.create(**ASK, stop=given)
        assert answer.choices[0].message.content == expected
        assert answer.choices[0].finish_reason == "stop"
        chunks = list(client.chat.completions.create(**ASK, stop=given, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_penalties_change_the_text(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(**{**ASK, "max_tokens": 60}).choices[0].message.content
    less = client.chat.completions.create(**{**ASK, "max_tokens": 60}, presence_penalty=2.0, frequency_penalty=2.0)
    assert less.choices[0].message.content != plain


def test_top_p_zero_and_top_k_one_are_greedy(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(**ASK).choices[0].message.content
    hot = {**ASK, "temperature": 2}
    assert client.chat.completions.create(**hot, top_p=0).choices[0].message.content == plain
    assert client.chat.completions.create(**hot, extra_body={"top_k": 1}).choices[0].message.content == plain


def test_completions_with_and_without_suffix(client: openai.OpenAI) -> None:
    ask: Any = {"model": "mercury-coder", "prompt": "def f(x):", "max_tokens": 12, "temperature": 0}
    plain = client.completions.create(**ask)
    assert plain.object == "text_completion"
    assert plain.model == "mercury-coder"
    assert plain.choices[0].finish_reason in ("length", "stop")
    filled = client.completions.create(**ask, suffix="return x")
    assert filled.choices[0].text != plain.choices[0].text
    # The client's type of these chunks forbids the null that OpenAI's own server sends until the last one.
    lenient = client.with_options(_extra_kwargs={"_strict_response_validation": False})
    chunks = list(lenient.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain.choices[0].text
    assert chunks[-1].usage is not None
    assert plain.usage is not None
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_a_prompt_of_token_ids(client: openai.OpenAI, server: Served) -> None:
    ids = server.service.llm.tokenizer.encode("def f(x):", special=True)
    ask: Any = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    text = client.completions.create(**ask, prompt="def f(x):").choices[0].text
    assert client.completions.create(**ask, prompt=ids).choices[0].text == text
    assert client.completions.create(**ask, prompt=["def f(x):"]).choices[0].text == text


def test_models_list_names_and_aliases(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL
    assert {"mercury", "mercury-2", "mercury-coder", "mercury-coder-small", "mercury-edit-2"} <= set(names)
    assert client.models.retrieve("mercury").owned_by == "openmercury"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_errors_are_the_client_s_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model `gpt-4` not found") as missing:
        client.chat.completions.create(**{**ASK, "model": "gpt-4"})
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(**{**ASK, "temperature": 2.5})
    assert (hot.value.param, hot.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**{**ASK, "messages": [{"role": "user", "content": "x y z " * 500}]})
    assert long.value.code == "context_length_exceeded"


def test_the_async_client_runs_many_at_once(server: Served) -> None:
    async def all_at_once() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def whole(number: int) -> str | None:
                ask = {**ASK, "messages": [{"role": "user", "content": f"def f{number % 3}(x):"}]}
                if number % 2:
                    return (await client.chat.completions.create(**ask)).choices[0].message.content
                stream = await client.chat.completions.create(**ask, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(whole, range(12)))

    texts = finished(all_at_once())
    assert len(set(texts)) == 3
    assert all(texts[number] == texts[number % 3] for number in range(12))
    assert server.pages_free()
