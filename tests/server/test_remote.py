"""An engine in a process of its own answers as one beside the server does; and neither process outlives the other."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from openmercury.engine.config import EngineConfig
from openmercury.errors import CheckpointError, EngineStoppedError, OpenMercuryError, QueueFullError
from openmercury.server.remote import RemoteLLM, apart
from tests.eval.made import write_checkpoint
from tests.server import made, test_load
from tests.server.made import MODEL, Served, finished, serving
from tests.server.test_edit import EDIT, MERGE
from tests.server.test_structured import CLOCK, PERSON, WEATHER

CONTEXT = 4096
ENGINE = EngineConfig(max_requests=8, max_waiting=64)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ENDLESS: dict[str, Any] = {"model": MODEL, "prompt": "def", "mode": "ar", "max_tokens": 4000, "ignore_eos": True}


def told(text: str = "Write f.", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 24, "seed": 5, **more}


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    with serving(made.llm(ENGINE, context=CONTEXT)) as served:
        yield served


@pytest.fixture(scope="module")
def there() -> Iterator[Served]:
    with contextlib.closing(made.remote(engine=ENGINE, context=CONTEXT)) as model, serving(model) as served:
        yield served


@pytest.fixture
def slowly() -> Iterator[Served]:
    """Its answers take seconds."""
    with contextlib.closing(made.remote(0.02, engine=ENGINE, context=CONTEXT)) as model, serving(model) as served:
        yield served


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, told()),
    "sampled, n": (CHAT, told(n=3, temperature=1.0, top_p=0.9, presence_penalty=0.5)),
    "verified": (CHAT, told(mode="verified")),
    "diffusion": (CHAT, told(mode="diffusion", threshold=0.5, ignore_eos=True)),
    "stop": (COMPLETIONS, {**ENDLESS, "max_tokens": 200, "stop": ["e", "a"]}),
    "logprobs": (CHAT, told(logprobs=True, top_logprobs=3)),
    "json schema": (CHAT, told(response_format=PERSON)),
    "json object": (CHAT, told(response_format={"type": "json_object"}, mode="diffusion")),
    "tools": (CHAT, told(tools=[WEATHER, CLOCK], tool_choice="required", max_tokens=80)),
    "grammar": (COMPLETIONS, {**ENDLESS, "ignore_eos": False, "structured_outputs": {"regex": "[ab]{7}"}}),
    "fill": ("/v1/fim/completions", {"model": MODEL, "prompt": "def f(", "suffix": "\n", "max_tokens": 9, "seed": 1}),
    "edit": ("/v1/edit/completions", told(EDIT, mode="verified")),
    "apply": ("/v1/apply/completions", told(MERGE, mode="auto")),
    "decisions": (
        "/v1/decisions",
        {"model": MODEL, "state": "x", "questions": {"q": {"type": "choice", "criteria": {"a": None, "b": "B"}}}},
    ),
    "too long": (COMPLETIONS, {**ENDLESS, "prompt": "x" * 3 * CONTEXT}),
    "no such grammar": (COMPLETIONS, {**ENDLESS, "structured_outputs": {"regex": "("}}),
    "ends never": (COMPLETIONS, {**ENDLESS, "structured_outputs": {"regex": "a"}}),
}


def settled(answer: httpx.Response) -> tuple[int, Any]:
    """What two servers must agree in."""
    body = answer.json()
    for name in ("id", "created"):
        body.pop(name, None)
    for choice in body.get("choices", ()):
        for call in choice.get("message", {}).get("tool_calls") or ():
            call.pop("id")
    if "usage" in body:  # prefixes that are known depend on what was asked before
        for name in ("cached_input_tokens", "prompt_tokens_details", "forwards", "tokens_per_forward"):
            body["usage"].pop(name, None)
    return answer.status_code, body


@pytest.mark.parametrize("case", CASES)
def test_it_answers_as_an_engine_beside_the_server(here: Served, there: Served, case: str) -> None:
    path, body = CASES[case]
    ours, theirs = (httpx.post(served.url + path, json=body, timeout=60) for served in (here, there))
    assert settled(theirs) == settled(ours)
    assert theirs.status_code < 500
    assert there.pages_free()


@pytest.mark.parametrize("more", [{}, {"diffusing": True, "mode": "diffusion"}, {"realtime": True}, {"n": 2}])
def test_streams_say_the_same(here: Served, there: Served, more: dict[str, Any]) -> None:
    ours, theirs = (_streamed(served, told(max_tokens=60, stream=True, **more)) for served in (here, there))
    assert theirs == ours
    assert any(theirs.values())


def _streamed(served: Served, body: dict[str, Any]) -> dict[int, str]:
    """The text of each answer; of snapshots the last."""
    texts: dict[int, str] = {}
    drafted = False
    with httpx.stream("POST", served.url + CHAT, json=body, timeout=60) as answer:
        lines = list(answer.iter_lines())
    assert "data: [DONE]" in lines
    for line in lines:
        chunk = json.loads(line[6:]) if line.startswith("data: {") else {"choices": ()}
        drafted = drafted or bool(chunk.get("diffusion_meta", {}).get("draft"))
        for choice in chunk["choices"]:
            before = "" if body.get("diffusing") else texts.get(choice["index"], "")
            texts[choice["index"]] = before + (choice["delta"].get("content") or "")
    assert drafted or not body.get("diffusing"), lines
    return texts


def test_the_queue_is_as_long(there: Served) -> None:
    engine = there.service.llm.engine
    assert engine.room == 8 + 64
    engine.check_room(71)
    with pytest.raises(QueueFullError, match="72 requests wait already"):
        engine.check_room(72)


def test_metrics_and_ready(there: Served) -> None:
    with httpx.Client(base_url=there.url) as http:
        assert http.get("/ready").status_code == 200
        pages = there.service.llm.engine.counts().pages
        assert f"openmercury_cache_pages {float(pages)}" in http.get("/metrics").text


def test_a_deadline_and_times_come_through(there: Served) -> None:
    async def ask() -> tuple[Any, float | None]:
        from openmercury.engine.params import SamplingParams

        params = SamplingParams(mode="ar", max_tokens=4000, ignore_eos=True, deadline=0.2)
        begin = time.monotonic()
        stream = there.service.engine.submit([5, 6, 7], params)
        updates = [update async for update in stream]
        assert stream.admitted is not None
        assert begin - 0.01 <= stream.admitted <= begin + 0.2
        return updates[-1].finish_reason, stream.admitted

    assert finished(ask())[0] == "deadline"


def test_leaving_frees_all(slowly: Served) -> None:
    for more in ({}, {"n": 3}, {"structured_outputs": {"regex": "[ab]*"}, "ignore_eos": False}):
        ask = {**ENDLESS, **more, "stream": True}
        with httpx.Client(base_url=slowly.url) as http, http.stream("POST", COMPLETIONS, json=ask) as answer:
            next(answer.iter_raw())
        assert slowly.pages_free(2.0)


def test_a_child_that_is_killed_ends_all_answers(slowly: Served) -> None:
    model = slowly.service.llm
    assert isinstance(model, RemoteLLM)

    def read(_: int) -> str:
        text, ask = "", {**ENDLESS, "stream": True}
        with (
            contextlib.suppress(httpx.RemoteProtocolError),  # the connection is dropped behind an error
            httpx.stream("POST", slowly.url + COMPLETIONS, json=ask, timeout=30) as answer,
        ):
            for part in answer.iter_text():
                text += part
        return text

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(read, number) for number in range(3)]
        while model.engine.counts().running < 3:
            time.sleep(0.01)
        _kill(model)
        for answer in answers:
            assert "engine's process ended (signal SIGKILL)" in answer.result(10)
    assert httpx.get(slowly.url + "/ready").status_code == 503
    assert httpx.post(slowly.url + COMPLETIONS, json=ENDLESS).status_code == 503
    assert model.engine.died == "the engine's process ended (signal SIGKILL): start the server anew"


def test_the_death_of_an_idle_child_is_noticed(slowly: Served) -> None:
    model = slowly.service.llm
    assert isinstance(model, RemoteLLM)
    _kill(model)
    end = time.monotonic() + 5
    while httpx.get(slowly.url + "/ready").status_code == 200 and time.monotonic() < end:
        time.sleep(0.02)
    assert "SIGKILL" in httpx.get(slowly.url + "/health").json()["status"]


def test_an_engine_that_breaks_down_there_is_told_here() -> None:
    here = made.llm()
    model = RemoteLLM(here.folder, here.config, here.tokenizer, made.broken, log_format="text")
    with contextlib.closing(model), serving(model) as served:
        answer = httpx.post(served.url + COMPLETIONS, json={**ENDLESS, "max_tokens": 4}, timeout=10)
        assert answer.status_code == 503
        told = "the engine broke down (SystemError: the device is gone): start the server anew"
        assert answer.json()["error"]["message"] == told
        assert httpx.get(served.url + "/health").json() == {"status": told}


def _kill(model: RemoteLLM) -> None:
    pid = model.engine._process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_what_loading_raises_there_is_raised_here(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError) as error:
        RemoteLLM.open(folder, device="cpu", dtype="float32")
    assert not isinstance(error.value, EngineStoppedError)
    with pytest.raises(OpenMercuryError, match="no model folder"):
        RemoteLLM.open(tmp_path / "none")


def test_who_decides() -> None:
    assert not apart("auto", "cpu")
    assert apart(True, "cpu")
    assert not apart(False, "cpu")


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`serve` as it is called."""
    folder = write_checkpoint(tmp_path / "tiny")
    words = ["serve", "--model", str(folder), "--device", "cpu", "--dtype", "float32", "--port", "0", "--mode", "ar"]
    process = subprocess.Popen(
        [sys.executable, "-m", "openmercury", *words, "--engine-process"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield process
    process.kill()
    process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    assert re.fullmatch(r"model +tiny on cpu, float32, mode ar\n", process.stderr.readline())
    found = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stderr.readline())
    assert found
    with httpx.Client(transport=httpx.HTTPTransport(retries=20)) as http:
        assert http.get(found[0].removesuffix("/v1") + "/ready").status_code == 200
    return found[0]


def _child(process: subprocess.Popen[str]) -> int:
    """The pid of its engine: spawned with arguments that name it."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("there is no child")


def _gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_sigterm_to_all_lets_answers_end(command: subprocess.Popen[str]) -> None:
    url = _address(command)
    child = _child(command)
    ask = {"model": "tiny", "prompt": "def", "max_tokens": 900, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/completions", json=ask, timeout=60) as answer:
        parts = answer.iter_text()
        text = next(parts)
        for pid in (child, command.pid):  # as a supervisor does
            os.kill(pid, signal.SIGTERM)
        text += "".join(parts)
    assert text.endswith("data: [DONE]\n\n")
    assert text.count('"finish_reason":"length"') == 1
    assert command.wait(20) in (0, -signal.SIGTERM)
    assert command.stderr is not None
    assert "Traceback" not in command.stderr.read()
    assert _gone(child)


@pytest.mark.slow
def test_the_command_fails_when_the_child_dies(command: subprocess.Popen[str]) -> None:
    _address(command)
    os.kill(_child(command), signal.SIGKILL)
    assert command.wait(20) == 1
    assert command.stderr is not None
    last = command.stderr.read().splitlines()[-1]
    assert last == "error: the engine's process ended (signal SIGKILL): start the server anew"


@pytest.mark.slow
def test_the_child_does_not_outlive_its_parent(command: subprocess.Popen[str]) -> None:
    url = _address(command)
    child = _child(command)
    ask = {"model": "tiny", "prompt": "def", "max_tokens": 1900, "stream": True, "ignore_eos": True}
    with contextlib.suppress(httpx.TransportError), httpx.stream("POST", f"{url}/completions", json=ask) as answer:
        next(answer.iter_raw())
        command.kill()
    assert _gone(child)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_clients_of_which_some_leave() -> None:
    model = made.remote(engine=EngineConfig(max_requests=16, max_waiting=256))
    with contextlib.closing(model), serving(model) as served:
        with httpx.Client(base_url=served.url, timeout=60) as http:
            expected = {
                prompt: http.post(COMPLETIONS, json=test_load.ask(prompt, stream=False)).json()["choices"][0]["text"]
                for prompt in range(8)
            }
        whole, left = finished(test_load.flood(served, expected))
        assert whole > test_load.CLIENTS / 2
        assert left > 0
        assert served.pages_free(10)
