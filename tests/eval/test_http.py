"""A server on this machine that answers, hesitates, refuses and dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmercury.errors import ConfigError, ServerError
from openmercury.eval import http, runner
from openmercury.eval.http import Remote, read_answer
from openmercury.eval.store import Store
from openmercury.eval.systems import Answer, Ask, Sampling
from openmercury.eval.tasks.base import Chat, Continue, Fill, Prompt
from tests.eval.runs import Reply, Server, Sums, chat_reply

DRAWN = Sampling(temperature=0.2, top_p=0.9)
Asked = Callable[[int, str, dict[str, Any], dict[str, str]], Reply | None]


def ask(prompt: Prompt) -> Ask:
    return Ask(prompt, 32, 7)


def answers(server: Server, *prompts: Prompt, **given: Any) -> list[Answer]:
    remote = Remote(server.url, "m", **{"first_pause": 0.01, "attempts": 3, **given})
    found = dict(remote.answer([ask(prompt) for prompt in prompts], DRAWN))
    return [found[number] for number in range(len(prompts))]


def always(status: int, told: dict[str, Any], **headers: str) -> Asked:
    return lambda *_: (status, told, headers)


# --- what is asked and read ------------------------------------------------------------------------------------------


def test_each_kind_of_prompt_goes_its_own_way() -> None:
    def reply(number: int, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        if path.endswith("chat/completions"):
            return chat_reply(body, forwards=2)
        choice = {"text": "a;b" if "suffix" in body else "one\ntwo", "finish_reason": "length"}
        return 200, {"choices": [choice], "usage": {"completion_tokens": 3}}, {}

    with Server(reply) as server:
        prompts = Chat("Give 1"), Continue("x = "), Fill("f(", ")", ("1", "2", "3", "4", ";"))
        chat, plain, fill = answers(server, *prompts, concurrency=1)
    common = {"model": "m", "max_tokens": 32, "temperature": 0.2, "top_p": 0.9, "seed": 7}
    assert server.asked == [
        ("/v1/chat/completions", {**common, "messages": [{"role": "user", "content": "Give 1"}]}),
        ("/v1/completions", {**common, "prompt": "x = "}),
        ("/v1/completions", {**common, "prompt": "f(", "suffix": ")", "stop": ["1", "2", "3", "4"]}),
    ]
    assert (chat.text, chat.finish_reason, chat.completion_tokens, chat.forwards) == ("f = lambda: 1\r\n", "stop", 5, 2)
    assert (plain.text, plain.finish_reason, plain.forwards, plain.token_ids) == ("one\ntwo", "length", None, None)
    assert (fill.text, fill.finish_reason) == (
        "a",
        "stop",
    )  # at the fifth stop string, which the protocol has no room for
    assert chat.seconds > 0


def test_a_reply_without_text_or_usage_is_an_empty_answer() -> None:
    told = read_answer({"choices": [{"message": {"content": None}}]}, (), 1.0)
    assert (told.text, told.finish_reason, told.completion_tokens, told.forwards) == ("", "stop", 0, None)


@pytest.mark.parametrize(
    "reply",
    [
        {},
        [],
        None,
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]},
        {"choices": [{"text": "x"}], "usage": {"completion_tokens": [1]}},
        {"choices": [{"text": "x"}], "usage": {"forwards": "many"}},
    ],
)
def test_what_is_no_reply_is_told(reply: Any) -> None:
    with pytest.raises(ValueError, match="not of the OpenAI protocol"):
        read_answer(reply, (), 1.0)


def test_requests_run_beside_each_other() -> None:
    def slow(number: int, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        time.sleep(0.2)
        return chat_reply(body)

    with Server(slow) as server:
        begin = time.monotonic()
        assert len(answers(server, *[Chat(f"Give {n}") for n in range(8)], concurrency=8)) == 8
    assert time.monotonic() - begin < 0.9
    assert list(Remote("http://127.0.0.1:9", "m").answer([], DRAWN)) == []


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [(429, {"error": "slow down"}, {"Retry-After": "0.3"}), (503, {}, {}), None])
def test_what_may_pass_is_tried_again(bad: Reply | None) -> None:
    with Server(lambda number, _, body, __: bad if number == 1 else chat_reply(body)) as server:
        begin = time.monotonic()
        [answer] = answers(server, Chat("Give 3"))
    assert answer.text == "f = lambda: 3\r\n"
    assert len(server.asked) == 2
    assert bad is None or not bad[2] or time.monotonic() - begin >= 0.3


def test_a_reply_that_is_no_json_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Server(always(200, {"choices": "none"})) as server,
        pytest.raises(ServerError, match="its reply is not of the OpenAI protocol"),
    ):
        answers(server, Chat("Give 3"))
    assert len(server.asked) == 3


def test_a_prompt_that_is_refused_is_an_error_of_its_own() -> None:
    def reply(number: int, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        if body["messages"][0]["content"] == "Give 1":
            return 400, {"error": {"message": "the context holds 8 tokens"}}, {}
        return chat_reply(body)

    with Server(reply) as server:
        bad, good = answers(server, Chat("Give 1"), Chat("Give 2"))
    assert (bad.finish_reason, bad.error) == ("error", "HTTP 400: the context holds 8 tokens")
    assert good.error is None
    with Server(always(500, {"detail": "crash"})) as server:
        [broken] = answers(server, Chat("Give 1"))
    assert broken.error is not None
    assert broken.error.startswith("HTTP 500")
    assert len(server.asked) == 3


def test_a_wrong_key_ends_the_run_and_is_not_told() -> None:
    key = "sk-very-secret"
    seen: list[str] = []

    def reply(number: int, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        seen.append(headers["Authorization"])
        return 401, {"error": {"message": f"Incorrect API key provided: {key}"}}, {}

    with Server(reply) as server, pytest.raises(ServerError) as raised:
        answers(server, Chat("Give 1"), key=key, concurrency=1)
    assert seen == [f"Bearer {key}"]
    assert "refuses (HTTP 401: Incorrect API key provided: …): check --api-key-env" in str(raised.value)
    assert key not in str(raised.value)
    assert key not in str(Remote(server.url, "m", key=key).identity)


def test_a_server_cannot_steer_the_terminal() -> None:
    with Server(always(400, {"error": {"message": "\x1b[2Jno\nroom"}})) as server:
        [answer] = answers(server, Chat("Give 1"))
    assert answer.error == "HTTP 400: [2Jno room"


@pytest.mark.parametrize("key", ["sk-very-secret\n", "sk-\u2019secret", "sk\tsecret"])
def test_a_key_that_no_header_holds_is_refused_and_not_told(key: str) -> None:
    with pytest.raises(ConfigError, match="the key holds a line break") as raised:
        Remote("http://h/v1", "m", key=key)
    assert "secret" not in str(raised.value)


def test_a_redirect_is_a_refusal() -> None:
    with Server(always(302, {}, Location="http://127.0.0.1:1/elsewhere")) as server:
        with pytest.raises(ServerError, match=r"refuses \(HTTP 302"):
            answers(server, Chat("Give 1"), key="sk-very-secret", concurrency=1)
        assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no base URL"):
        Remote(url, "m")


def test_credentials_in_the_url_are_refused() -> None:
    with pytest.raises(ConfigError, match="holds credentials") as raised:
        Remote("http://me:hidden@host/v1", "m")
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(("value", "seconds"), [(None, None), ("2", 2.0), ("-1", 0.0), ("soon", None)])
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert http._retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    assert http._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_a_server_that_dies_keeps_what_it_gave_and_the_run_goes_on(tmp_path: Path) -> None:
    store = Store.create(tmp_path, {}, {})
    work = runner.job(Sums(), "chat", None, None, None)

    def generate(server: Server) -> None:
        remote = Remote(server.url, "m", concurrency=2, attempts=2, first_pause=0.01)
        runner.generate(remote, work, 1, DRAWN, store, lambda *_: None)

    dying = Server(lambda number, _, body, __: chat_reply(body) if number <= 3 else None)
    with dying, pytest.raises(ServerError, match="what it gave is kept, and the same command goes on from there"):
        generate(dying)
    assert len(store.samples(Sums(), "chat").samples) == 3
    with Server(lambda number, _, body, __: chat_reply(body)) as server:
        generate(server)
    assert len(server.asked) == 3
    assert len(store.samples(Sums(), "chat").samples) == 6
    with pytest.raises(ServerError, match="refused"):  # nobody listens there any more
        list(Remote(server.url, "m", attempts=1).answer([ask(Chat("Give 1"))], DRAWN))
