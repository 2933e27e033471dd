"""Snippets of docs/integrations.md as they stand, and what editors send by their source."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from openmercury.server.settings import ALIASES
from tests.server.made import Served, llm, serving

HERE = "http://127.0.0.1:8000"
DOC = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOC, re.M | re.S)
ZED_STOPS = [
    "<|endoftext|>", "<|file_separator|>", "<|fim_pad|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<PRE>", "<SUF>", "<MID>", "[PREFIX]", "[SUFFIX]",
]  # fmt: skip


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def client_of(block: str) -> str:
    found = re.search(r"^(?:from|import) (\w+)", block, re.M)
    assert found
    return found[1]


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def tagged(name: str) -> str:
    return f"<|{name}|>\nx = 1\n<|/{name}|>\n"


def test_every_client_has_a_snippet() -> None:
    assert {client_of(block) for block in blocks("python")} == {"openai", "inceptionai", "litellm", "langchain_openai"}
    for block in (text for _, text in BLOCKS):
        assert HERE in block
        for model in re.findall(r"[\"/ ](mercury[\w.-]*)", block):
            assert model in ALIASES


@pytest.mark.parametrize("block", blocks("python"), ids=client_of)
def test_python(
    server: Served, block: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise it fetches prices when it is imported
    pytest.importorskip(client_of(block), reason="its client is not installed: extra `conformance`")
    exec(compile(block.replace(HERE, server.url), "docs/integrations.md", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", [block for block in blocks("bash") if block.startswith("curl")])
def test_curl(server: Served, block: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    done = subprocess.run(
        ["bash", "-c", block.replace(HERE, server.url)], capture_output=True, text=True, check=True, timeout=30
    )
    if '"stream": true' in block:
        assert done.stdout.endswith("data: [DONE]\n\n")
    else:
        assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_continue() -> None:
    """What its provider `inception` sends to each of its addresses."""
    (config,) = map(yaml.safe_load, blocks("yaml"))
    (model,) = config["models"]
    assert model["provider"] == "inception"
    path = model["apiBase"].removeprefix(HERE)
    common = {"model": model["model"], "temperature": 0, "presence_penalty": 1.5, "max_tokens": 20, "stream": True}
    ends = ["<|endoftext|>"]
    requests: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {"messages": said("def f(x):"), "nextEdit": False}),
        ("completions", {"prompt": "def f(", "suffix": "<|endoftext|>", "stop": [*ends, "\n\n", "\n \n"]}),
        ("edit/completions", {"messages": said(tagged("code_to_edit"))}),
        ("apply/completions", {"messages": said(tagged("original_code") + tagged("update_snippet"))}),
    ]
    with serving(llm(context=2048)) as server, httpx.Client(base_url=server.url, timeout=20) as http:
        for end, more in requests:
            answer = http.post(path + end, json={**common, "stop": ends, **more})
            assert answer.status_code == 200, (end, answer.text)
            assert answer.text.endswith("data: [DONE]\n\n")


def test_zed(http: httpx.Client) -> None:
    """Chat streams as OpenAI's; a completion is a raw prompt with the stops of all models it knows."""
    (settings,) = map(json.loads, blocks("json"))
    asked: Any = settings["edit_predictions"]["open_ai_compatible_api"]
    assert asked["prompt_format"] == "qwen"
    answer = http.post(
        asked["api_url"].removeprefix(HERE),
        json={
            "model": asked["model"],
            "prompt": "<|fim_prefix|>def f(x):\n    <|fim_suffix|>\n\nprint(f(1))<|fim_middle|>",
            "max_tokens": asked["max_output_tokens"],
            "stop": ZED_STOPS,
        },
    )
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert set(told) >= {"id", "object", "created", "model", "choices", "usage"}
    assert set(told["usage"]) >= {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert isinstance(told["choices"][0]["text"], str)
    (chat,) = settings["language_models"]["openai_compatible"].values()
    assert http.get(f"{chat['api_url'].removeprefix(HERE)}/models").status_code == 200
