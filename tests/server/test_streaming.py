"""What only a stream can get wrong: order, snapshots, silence, faults, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from inceptionai import Inception

from openmercury.errors import RequestFailedError
from openmercury.llm import LLM, DraftPiece
from openmercury.server.generation import MASK, Snapshots, drafted
from openmercury.server.service import Piece
from tests.server.made import MODEL, Served, finished, llm, serving, slow

ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "def f(x):"}], "max_tokens": 20}
ENDLESS: dict[str, Any] = {**ASK, "max_tokens": 450, "ignore_eos": True}
CHAT = "/v1/chat/completions"


def frames(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]


def test_the_frames_of_a_stream(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={**ASK, "stream": True, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    *chunks, done = frames(answer.text)
    assert done == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    assert {chunk["object"] for chunk in parsed} == {"chat.completion.chunk"}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in parsed[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert parsed[-1]["choices"] == []
    assert parsed[-1]["usage"]["completion_tokens"] == 20
    assert not any("diffusion_meta" in chunk for chunk in parsed)


@pytest.mark.parametrize("mode", ["diffusion", "verified", "ar", "auto"])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/fim/completions"])
def test_snapshots_of_every_mode_and_endpoint_end_in_the_text(http: httpx.Client, path: str, mode: str) -> None:
    ask = {**ASK, "mode": mode, "stop": ["\x00\x00"]}
    if path != CHAT:
        ask = {**ask, "prompt": "def f(x):", "suffix": "return x"}
        del ask["messages"]
    whole = http.post(path, json=ask).json()["choices"][0]
    text = whole["message"]["content"] if path == CHAT else whole["text"]
    *chunks, _ = frames(http.post(path, json={**ask, "stream": True, "diffusing": True}).text)
    shown = [json.loads(chunk) for chunk in chunks]
    snapshots = [chunk for chunk in shown if "diffusion_meta" in chunk]
    last = snapshots[-1]["choices"][0]
    assert (last["delta"]["content"] if path == CHAT else last["text"]) == text
    assert last["finish_reason"] == whole["finish_reason"]
    assert snapshots[-1]["diffusion_meta"]["diffusion_progress"] == 1.0
    for chunk in snapshots:
        content = chunk["choices"][0]["delta"]["content"] if path == CHAT else chunk["choices"][0]["text"]
        assert content.startswith(text[: chunk["diffusion_meta"]["settled_characters"]])


def test_snapshots_are_as_many_as_a_screen_can_show() -> None:
    view, count = Snapshots((), seconds=10), 0
    for _ in range(1000):
        count += view.take(Piece("", 0, 0, (DraftPiece("", "masked"),), None), "", MASK) is not None
    assert count == 1
    last = view.take(Piece("end", 1, 1, (), "stop"), "end", "end")
    assert last is not None
    assert (last[0], last[1]["diffusion_progress"]) == ("end", 1.0)


def test_a_snapshot_ends_where_a_stop_string_would() -> None:
    view = Snapshots(("STOP",), seconds=0)
    piece = Piece("abc", 1, 1, (DraftPiece("deST", "draft"), DraftPiece("OPx", "draft")), None)
    shown = view.take(piece, "abc", "abc" + drafted(piece))
    assert shown is not None
    assert shown[0] == "abcde"
    piece = Piece("", 1, 2, (DraftPiece("d", "draft"), DraftPiece("", "masked")), None)
    shown = view.take(piece, "abc", "abc" + drafted(piece))
    assert shown is not None
    assert shown[0] == "abcd" + MASK


def test_comments_keep_a_silent_stream_alive() -> None:
    with serving(slow(llm(), 0.1), keep_alive_seconds=0.03) as served, httpx.Client(base_url=served.url) as http:
        text = http.post(CHAT, json={**ASK, "max_tokens": 3, "stream": True}).text
        assert ": keep-alive\n\n" in text
        assert frames(text)[-1] == "[DONE]"
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            stream: Any = client.chat.completions.create(**{**ASK, "max_tokens": 3}, stream=True)
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"


def failing(model: LLM, after: int) -> LLM:
    """A model whose answers break down after so many tokens."""
    step = model.engine.step

    def broken(**given: Any) -> Any:
        moved = step(**given)
        for request in moved:
            if len(request.completion) >= after:
                request.fail(RequestFailedError("the logits are NaN: try float32"))
        return moved

    model.engine.step = broken  # type: ignore[method-assign]
    return model


def test_a_fault_in_the_middle_never_passes_for_an_end() -> None:
    with serving(failing(llm(), after=4)) as served:
        with httpx.Client(base_url=served.url) as http:
            whole = http.post(CHAT, json=ASK)
            assert whole.status_code == 500
            assert whole.json()["error"]["message"] == "the logits are NaN: try float32"
            seen = list[bytes]()
            sent = http.stream("POST", CHAT, json={**ASK, "stream": True})
            with sent as answer, pytest.raises(httpx.RemoteProtocolError):
                seen.extend(answer.iter_raw())
        last = json.loads(frames(b"".join(seen).decode())[-1])
        assert last["error"]["message"] == "the logits are NaN: try float32"
        assert last["choices"][0]["finish_reason"] == "length"
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as ours:
            stream: Any = ours.chat.completions.create(**ASK, stream=True)  # type: ignore[call-overload]
            with pytest.raises(openai.APIError, match="NaN"):
                list(stream)
        with Inception(base_url=served.url, api_key="none", max_retries=0, _strict_response_validation=True) as theirs:
            chunks: Any = theirs.chat.completions.create(**ASK, stream=True)
            taken = list[Any]()
            with pytest.raises(httpx.RemoteProtocolError):
                taken.extend(chunks)
            assert all(chunk.choices for chunk in taken)  # the one with the error is a whole chunk, too
        assert served.pages_free()


def _stream_then_leave(served: Served, ask: dict[str, Any]) -> None:
    with httpx.Client(base_url=served.url) as http, http.stream("POST", CHAT, json={**ask, "stream": True}) as answer:
        next(answer.iter_raw())


def _ask_then_leave(served: Served, ask: dict[str, Any]) -> None:
    _raw(served, ask).close()


def _raw(served: Served, ask: dict[str, Any], buffer: int | None = None) -> socket.socket:
    """A connection on which the request has been sent and nothing is read."""
    body = json.dumps(ask).encode()
    client = socket.socket()
    if buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.connect(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
    head = (
        f"POST {CHAT} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {len(body)}",
    )
    client.sendall("\r\n".join([*head, "", ""]).encode() + body)
    end = time.monotonic() + 5
    while not served.service.llm.engine.busy and time.monotonic() < end:
        time.sleep(0.01)
    return client


@pytest.mark.parametrize("leave", [_stream_then_leave, _ask_then_leave])
@pytest.mark.parametrize("n", [1, 3])
def test_leaving_frees_all_within_a_step(leave: Callable[[Served, dict[str, Any]], None], n: int) -> None:
    with serving(slow(llm(), 0.02)) as served:  # 450 tokens would take nine seconds
        leave(served, {**ENDLESS, "n": n})
        assert served.pages_free(1.0)


def test_who_does_not_read_is_dropped_and_disturbs_nobody() -> None:
    with serving(send_seconds=0.3, snapshot_seconds=0) as served:
        # Inherited by connections: the system's own buffer would take in all of the answer.
        served.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        deaf = _raw(served, {**ENDLESS, "n": 4, "stream": True, "diffusing": True}, buffer=2048)
        with httpx.Client(base_url=served.url, timeout=30) as http:
            assert http.post(CHAT, json=ASK).status_code == 200
        assert served.pages_free(20)
        end = time.monotonic() + 5
        while served.server.server_state.connections and time.monotonic() < end:
            time.sleep(0.01)
        assert not served.server.server_state.connections  # although nobody has read what was sent
        deaf.close()


def test_many_leave_and_the_others_do_not_notice(server: Served) -> None:
    with httpx.Client(base_url=server.url, timeout=30) as http:
        alone = http.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"]
        gone = [_raw(server, {**ENDLESS, "stream": True}) for _ in range(6)]
        for client in gone[::2]:
            client.close()
        assert http.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"] == alone
        for client in gone[1::2]:
            client.close()
    assert server.pages_free()


def test_a_client_that_left_before_its_answer_began_is_not_answered(server: Served) -> None:
    """It is gone when the response would begin, so that nobody has read anything yet."""
    body = json.dumps({**ENDLESS, "stream": True}).encode()
    messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(_: Any) -> None:
        await asyncio.sleep(5)

    async def main() -> Any:
        scope["state"] = {}
        await server.server.config.app(scope, receive, send)  # type: ignore[operator,arg-type]
        return scope["state"]["generation"]

    generation = finished(main())
    assert all(answer._stream._mailbox.request.finish_reason == "abort" for answer in generation._answers)
    assert server.pages_free()
