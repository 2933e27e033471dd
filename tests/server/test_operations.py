"""Who may ask and how much; what the server tells of itself; how it ends."""

from __future__ import annotations

import io
import json
import logging
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from openmercury.engine.config import EngineConfig
from openmercury.errors import ConfigError
from openmercury.log import get_logger
from openmercury.server import limits
from openmercury.server.auth import Door, add_key, read_keys
from openmercury.server.logs import Lines
from openmercury.server.settings import ServerSettings
from tests.server.made import MODEL, Served, llm, serving, slow

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "a secret question"}], "max_tokens": 4}
ENDLESS: dict[str, Any] = {**ASK, "max_tokens": 450, "ignore_eos": True}


def test_keys_are_kept_as_hashes_for_their_owner_s_eyes(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = add_key(path, "ann"), add_key(path, "bob")
    assert first != second
    assert first not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [key.name for key in read_keys(path).keys] == ["ann", "bob"]
    with pytest.raises(ConfigError, match="named ann already"):
        add_key(path, "ann")
    path.write_text('{"keys": [{"name": "x", "sha256": "short"}]}')
    with pytest.raises(ConfigError, match="broken"):
        read_keys(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_a_key_opens_the_api_and_nothing_else_needs_one(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = add_key(path, "ann")
    with serving(keys=path, host="0.0.0.0") as served, httpx.Client(base_url=served.url) as http:
        for headers in ({}, {"authorization": "Bearer nope"}, {"authorization": key}, {"authorization": "Basic x"}):
            for method, where in (
                ("POST", CHAT),
                ("GET", "/v1/models"),
                ("POST", "/v1/v1" + CHAT[3:]),
                ("GET", "/metrics"),
            ):
                answer = http.request(method, where, headers=headers, json=ASK)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.json()["error"]["type"] == "authentication_error"
        for open_to_all in ("/health", "/ready", "/openapi.json"):
            assert http.get(open_to_all).status_code == 200
        told = {"request_id": "chatcmpl-1", "user_action": "accept"}
        assert http.post("/feedback", json=told).status_code == 200  # editors send no key
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=key) as client:
            assert client.chat.completions.create(**ASK).choices[0].message.content  # type: ignore[call-overload]
        with (
            pytest.raises(openai.AuthenticationError),
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as wrong,
        ):
            wrong.models.list()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_no_keys_no_public_address(host: str) -> None:
    with pytest.raises(ConfigError, match="no API keys"):
        Door(ServerSettings(host=host))


def test_another_name_for_this_machine_is_refused(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"host": "attacker.example"})
    assert answer.status_code == 403
    for name in ("localhost:8000", "[::1]:8000", "127.0.0.1"):
        assert http.get("/v1/models", headers={"host": name}).status_code == 200


def test_request_and_token_budgets(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    ann, bob = add_key(path, "ann"), add_key(path, "bob")
    held = json.loads(path.read_text())
    held["keys"][1] |= {"requests_per_minute": 100, "tokens_per_minute": 10}
    path.write_text(json.dumps(held))
    with serving(keys=path, requests_per_minute=2) as served, httpx.Client(base_url=served.url) as http:
        mine = {"authorization": f"Bearer {ann}"}
        first, second, third = (http.post(CHAT, json=ASK, headers=mine) for _ in range(3))
        assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert third.json()["error"]["type"] == "rate_limit_error"
        assert third.json()["error"]["code"] == "rate_limit_reached"
        assert 1 <= int(third.headers["retry-after"]) <= 30
        assert http.get("/v1/models", headers=mine).status_code == 200  # lists cost nothing
        theirs = {"authorization": f"Bearer {bob}"}
        assert http.post(CHAT, json=ASK, headers=theirs).status_code == 200  # its cost is known behind it
        over = http.post(CHAT, json=ASK, headers=theirs)
        assert over.status_code == 429
        assert "tokens" in over.json()["error"]["message"]
        assert over.headers["x-ratelimit-remaining-tokens"] == "0"


def test_a_budget_refills(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    bucket = limits.Bucket(60)
    bucket.spend(90)
    assert bucket.level() == -30
    assert bucket.seconds_until(1) == 31
    now[0] = 1000.0
    assert bucket.level() == 60


def _at_once(served: Served, count: int, **ask: Any) -> list[httpx.Response]:
    def one(_: int) -> httpx.Response:
        return httpx.post(served.url + CHAT, json={**ASK, **ask}, timeout=30)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_no_more_than_so_many_at_once() -> None:
    with serving(slow(llm(), 0.05), max_concurrent=2) as served:
        answers = _at_once(served, 5)
        refused = [answer for answer in answers if answer.status_code == 503]
        assert 1 <= len(refused) <= 3
        assert refused[0].json()["error"] | {"message": ""} == {
            "message": "", "type": "server_error", "param": None, "code": "overloaded",
        }  # fmt: skip
        assert refused[0].headers["retry-after"] == "1"
    with serving(slow(llm(), 0.05), max_concurrent_per_key=2) as served:
        assert {answer.status_code for answer in _at_once(served, 5)} == {200, 429}


def test_a_full_queue_answers_503_and_is_not_ready() -> None:
    narrow = slow(llm(EngineConfig(max_requests=1, max_waiting=1)), 0.05)
    with serving(narrow) as served:
        answers = _at_once(served, 6, max_tokens=8, ignore_eos=True)
        codes = sorted(answer.status_code for answer in answers)
        assert codes[0] == 200
        assert codes[-1] == 503
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert "retry-after" in refused.headers
        assert httpx.get(served.url + "/ready").status_code == 200
        assert served.pages_free()


def test_a_deadline_gives_what_is_there() -> None:
    with serving(slow(llm(), 0.02), deadline=0.3) as served:
        begin = time.monotonic()
        answer = httpx.post(served.url + CHAT, json={**ENDLESS, "deadline": 100}, timeout=30).json()
        assert time.monotonic() - begin < 3
        assert answer["choices"][0]["finish_reason"] == "length"
        assert 0 < answer["usage"]["completion_tokens"] < 450


def test_a_half_sent_request_is_given_up() -> None:
    with serving(body_seconds=0.2) as served:
        client = socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])), timeout=5)
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            'content-length: 500\r\n\r\n{"model":'.encode()
        )
        answered = client.recv(100)
        assert answered.startswith(b"HTTP/1.1 408")
        while more := client.recv(1000):  # to the end of the connection
            answered += more
        assert b"did not come within 0.2 s" in answered
        client.close()


def test_a_head_that_does_not_come_is_given_up_and_a_slow_one_is_not() -> None:
    with serving(slow(llm(), 0.05), body_seconds=0.3) as served:
        where = ("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
        whole = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for sent in (b"", b"GET /health HT", whole[:-2]):
            with socket.create_connection(where, timeout=5) as client:
                client.sendall(sent)
                begin = time.monotonic()
                assert client.recv(100) == b""
                assert 0.1 < time.monotonic() - begin < 3
        with socket.create_connection(where, timeout=5) as client:
            client.sendall(whole[:9])
            time.sleep(0.1)
            client.sendall(whole[9:])
            answered = b""
            while not answered.endswith(b'{"status":"ok"}'):
                answered += client.recv(1000)
            client.sendall(whole[:9])  # a second one that stops
            assert client.recv(1000) == b""
        with socket.create_connection(where, timeout=5) as client:
            begin = time.monotonic()
            client.sendall(whole[:-2] + b"x: ")
            with pytest.raises(ConnectionError):  # long before its time is over
                client.sendall(b"x" * 2**25)
            assert time.monotonic() - begin < 0.3
        answer = httpx.post(served.url + CHAT, json={**ASK, "max_tokens": 12, "ignore_eos": True})  # takes longer
        assert answer.json()["usage"]["completion_tokens"] == 12


def test_health_ready_and_metrics(http: httpx.Client, server: Served) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready"}
    http.post(CHAT, json=ASK)
    text = http.get("/metrics").text
    assert 'openmercury_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert "openmercury_completion_tokens_total{" in text
    assert f"openmercury_cache_pages {float(server.service.llm.engine.counts().pages)}" in text
    assert "secret" not in text


def test_an_engine_that_broke_down_is_reported() -> None:
    model = llm()
    with serving(model) as served, httpx.Client(base_url=served.url, timeout=10) as http:

        def crash(**_: Any) -> Any:
            raise SystemError("the device is gone")

        model.engine.step = crash  # type: ignore[method-assign]
        assert http.post(CHAT, json=ASK).status_code == 503
        assert http.get("/health").status_code == 503
        assert http.get("/ready").status_code == 503
        assert http.post(CHAT, json=ASK).json()["error"]["code"] == "overloaded"


def test_the_page_is_safe_and_other_origins_are_not_let_in(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"origin": "https://elsewhere.example"})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control")]
    with serving(cors_origins=("https://elsewhere.example",)) as served:
        answer = httpx.get(served.url + "/v1/models", headers={"origin": "https://elsewhere.example"})
        assert answer.headers["access-control-allow-origin"] == "https://elsewhere.example"


def test_the_log_has_facts_and_no_text(http: httpx.Client) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines("json"))
    logger, level = get_logger(), get_logger().level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        http.post(CHAT, json=ASK)
        http.post(CHAT, json={**ASK, "temperature": 9})
        end = time.monotonic() + 5
        while stream.getvalue().count("\n") < 2 and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    good, bad = map(json.loads, stream.getvalue().splitlines())
    assert (good["event"], good["status"], good["path"], good["client"]) == ("request", 200, CHAT, "local")
    assert good["completion_tokens"] == 4
    assert good["first_text_seconds"] <= good["seconds"]
    assert bad["status"] == 400
    assert "secret" not in stream.getvalue()


def test_answers_under_way_are_finished_before_the_end() -> None:
    with serving(slow(llm(), 0.01)) as served:
        got: list[str] = []

        def read() -> None:
            with httpx.stream(
                "POST", served.url + CHAT, json={**ENDLESS, "max_tokens": 60, "stream": True}, timeout=30
            ) as answer:
                got.extend(answer.iter_text())

        reader = threading.Thread(target=read)
        reader.start()
        while not got:
            time.sleep(0.01)
        served.server.should_exit = True
        reader.join(30)
        assert "".join(got).endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.ConnectError):
            httpx.get(served.url + "/ready")


def test_the_description_names_every_route(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    assert {CHAT, "/v1/completions", "/v1/fim/completions", "/v1/models", "/health"} <= described["paths"].keys()
    assert not any(path.startswith("/v1/v1") for path in described["paths"])
    answers = described["paths"][CHAT]["post"]["responses"]
    assert "422" not in answers
    assert "default" in answers
