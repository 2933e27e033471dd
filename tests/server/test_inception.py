"""Mercury's own client in strict mode, sync and async; older versions where their wheels are at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import inceptionai
import pytest
from inceptionai import AsyncInception, Inception

from tests.server.made import MODEL, Served, finished

ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": "def f(x):"}], "max_tokens": 20, "temperature": 0}


@pytest.fixture(params=["", "/v1"], ids=["base", "base with /v1"])
def client(server: Served, request: pytest.FixtureRequest) -> Iterator[Inception]:
    with Inception(
        base_url=server.url + request.param, api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def test_chat(client: Inception) -> None:
    answer = client.chat.completions.create(**ASK, reasoning_summary=True)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 20
    assert answer.usage.prompt_tokens_details is not None
    assert answer.reasoning_summary is not None
    assert answer.reasoning_summary.status == "unavailable"


def test_streams_append_and_helper_joins(client: Inception) -> None:
    whole = client.chat.completions.create(**ASK).choices[0].message.content
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    usage: Any = chunks[-1].model_extra
    assert usage["usage"]["reasoning_tokens"] == usage["usage"]["cached_input_tokens"] == 0
    with client.chat.completions.stream(**ASK) as stream:
        final = stream.until_done().get_final_completion()
    assert final.choices[0].message.content == whole


def test_diffusing_snapshots_replace_each_other_and_end_with_the_text(client: Inception) -> None:
    whole = client.chat.completions.create(**ASK, extra_params={"mode": "diffusion"}).choices[0].message.content
    shown, progress = "", []
    for chunk in client.chat.completions.create(**ASK, stream=True, diffusing=True):
        if chunk.choices[0].delta.content:
            shown = chunk.choices[0].delta.content
        meta = (chunk.model_extra or {}).get("diffusion_meta")
        if meta is not None:
            progress.append(meta["diffusion_progress"])
            assert meta["diffusion_content"] is True
    assert shown == whole
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert all(share < 1 for share in progress[:-1])


def test_engine_settings_in_both_places(client: Inception) -> None:
    inside = client.chat.completions.create(**ASK, extra_params={"mode": "ar"})
    beside = client.chat.completions.create(**ASK, extra_body={"mode": "ar"})
    for answer in (inside, beside):
        usage: Any = answer.usage.model_extra
        assert usage["forwards"] >= 19
    assert inside.choices[0].message.content == beside.choices[0].message.content
    with pytest.raises(inceptionai.BadRequestError, match="threshold only acts in mode diffusion"):
        client.chat.completions.create(**ASK, extra_params={"mode": "ar", "threshold": 0.5})


@pytest.mark.parametrize("effort", ["instant", "low", "medium", "high"])
def test_every_effort_answers(client: Inception, effort: Any) -> None:
    assert client.chat.completions.create(**ASK, reasoning_effort=effort, realtime=True).choices[0].message.content


def test_fim(client: Inception) -> None:
    ask: Any = {"model": "mercury-coder", "prompt": "def f(x):\n    ", "suffix": "\n\nprint(f(1))"}
    answer = client.fim.completions.create(**ask, max_tokens=20, top_p=1.0, presence_penalty=1.5)
    assert answer.object == "text_completion"
    chunks = list(client.fim.completions.create(**ask, max_tokens=20, stream=True))
    assert "".join(chunk.choices[0].text or "" for chunk in chunks if chunk.choices) == answer.choices[0].text
    with pytest.raises(inceptionai.BadRequestError, match="top_k"):
        client.fim.completions.create(**ask, top_k=0)


def test_the_four_lists(client: Inception) -> None:
    lists = [client.models.list(), client.models.list_chat(), client.models.list_fim(), client.models.list_edit()]
    for found in lists:
        assert found.data[0].id == MODEL
        assert found.data[0].context_length == 512
        assert "chat.completions" in found.data[0].supported_endpoints


def test_error_classes(client: Inception) -> None:
    with pytest.raises(inceptionai.NotFoundError, match="model_not_found"):
        client.chat.completions.create(**{**ASK, "model": "nothing"})
    with pytest.raises(inceptionai.BadRequestError):
        client.chat.completions.create(**{**ASK, "temperature": 5})


def test_the_async_client(server: Served) -> None:
    async def talk() -> tuple[str, str]:
        async with AsyncInception(
            base_url=server.url, api_key="none", max_retries=0, _strict_response_validation=True
        ) as client:
            whole = await client.chat.completions.create(**ASK)
            parts = []
            async for chunk in await client.chat.completions.create(**ASK, stream=True):
                parts.append(chunk.choices[0].delta.content or "")
            await client.models.list_chat()
            await client.fim.completions.create(model=MODEL, prompt="def f(", suffix=")", max_tokens=5)
            return str(whole.choices[0].message.content), "".join(parts)

    whole, streamed = finished(talk())
    assert whole == streamed


OLD = """
import sys
from inceptionai import Inception, __version__
url, model = sys.argv[1:]
client = Inception(base_url=url, api_key="none", max_retries=0, _strict_response_validation=True)
ask = dict(model=model, messages=[{"role": "user", "content": "def f(x):"}], max_tokens=20, temperature=0)
whole = client.chat.completions.create(**ask)
shown = ""
try:
    for chunk in client.chat.completions.create(**ask, stream=True):
        shown += chunk.choices[0].delta.content or ""
except Exception as error:  # 0.1.0 and 0.1.1 cannot read `data: [DONE]`, whatever the server does
    if __version__ not in ("0.1.0", "0.1.1"):
        raise
assert shown == whole.choices[0].message.content
assert whole.usage.completion_tokens == 20
client.fim.completions.create(model=model, prompt="def f(", suffix=")", max_tokens=5)
client.models.list()
print(__version__)
"""


@pytest.mark.parametrize("version", ["0.1.0", "0.1.4"])
def test_older_clients(server: Served, tmp_path: Path, version: str) -> None:
    wheels = Path(os.environ.get("OPENMERCURY_OLD_CLIENTS", "")).glob(f"inceptionai-{version}-*.whl")
    wheel = next(wheels, None)
    if wheel is None:
        pytest.skip("put the wheels of old inceptionai versions into the folder OPENMERCURY_OLD_CLIENTS")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", OLD, server.url, MODEL],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == version
