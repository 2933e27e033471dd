"""`serve` as it is called: what it refuses, what it prints, and how SIGTERM ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from openmercury.cli import serve
from openmercury.cli.main import main
from tests.eval.made import write_checkpoint

PROGRAM = """
import sys
from openmercury.cli import main, serve
from tests.server.made import llm, slow
serve.load_llm = lambda *_: slow(llm(), 0.01)
sys.exit(main.main())
"""


def test_a_public_address_needs_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0"]) == 1
    assert "no API keys" in capsys.readouterr().err


def test_settings_out_of_range_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "99999"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: settings of the server: port")
    assert told.count("\n") == 1


def test_a_key_is_made_and_shown_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    assert main(["serve", "--keys", str(keys), "--add-key", "ann"]) == 0
    made = capsys.readouterr().out.strip()
    assert made.startswith("om-")
    assert made not in keys.read_text()
    assert main(["serve", "--add-key", "bob"]) == 1
    assert "--keys FILE" in capsys.readouterr().err


def test_limits_reach_the_engine_and_the_rest_suits_the_machine(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path / "model"))
    plain = serve.load_llm(folder, "cpu", "float32", {})
    changed = serve.load_llm(folder, "cpu", "float32", {"max_waiting": 3, "max_requests": 2})
    assert (changed.engine.config.max_waiting, changed.engine.config.max_requests) == (3, 2)
    assert changed.engine.config.draft_width == plain.engine.config.draft_width
    assert plain.engine.config.max_waiting is None


def test_it_prints_where_and_what_and_sigterm_lets_answers_end(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", "--port", "0", "--name", "tiny", "--mode", "ar"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stderr is not None
        model, where = process.stderr.readline(), process.stderr.readline()
        assert re.fullmatch(r"model +tiny on cpu, float64, mode ar\n", model)
        assert process.stderr.readline().startswith("page")
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", where)
        assert found, where
        url = found[0]
        _await(url.removesuffix("/v1") + "/ready")
        ask = {"model": "tiny", "prompt": "def", "max_tokens": 60, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/completions", json=ask, timeout=30) as answer:
            parts = answer.iter_text()
            text = next(parts)
            process.send_signal(signal.SIGTERM)
            text += "".join(parts)
        assert text.endswith("data: [DONE]\n\n")
        assert text.count('"finish_reason":"length"') == 1
        assert process.wait(20) in (0, -signal.SIGTERM)
        log = process.stderr.read()
        assert '"path": "/v1/completions"' in log
        assert "Traceback" not in log
    finally:
        process.kill()


def _await(url: str) -> None:
    for _ in range(200):
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} never answered")
