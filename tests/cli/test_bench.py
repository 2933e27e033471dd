"""`bench` end to end on a tiny checkpoint, its prompt sets, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from openmercury.cli import main
from openmercury.engine import probe
from openmercury.errors import DataError, InputError, ServerError
from openmercury.eval import baseline, prompts
from openmercury.eval.clients import Load
from openmercury.llm import LLM
from openmercury.model.costs import FORMATS, packable
from openmercury.model.shapes import SHAPES
from tests import tiny
from tests.eval.made import write_checkpoint, write_data
from tests.server.made import serving
from tests.text.made import byte_level


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_data(tmp_path / "data")
    monkeypatch.setenv("OPENMERCURY_EVAL_DATA", str(folder))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    return str(write_checkpoint(tmp_path / "tiny"))


def run(*options: str) -> int:
    return main.main(["bench", "--device", "cpu", "--dtype", "float32", *options])


def test_loops_tables_json_and_picture(
    data: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "new" / "out.json", tmp_path / "new" / "speed.svg"
    asked = ("--model", checkpoint, "--limit", "3", "--requests", "7", "--max-tokens", "6", "--rate", "50")
    assert run(*asked, "--concurrency", "1,3", "--json", str(out), "--picture", str(picture)) == 0
    told = json.loads(out.read_text())
    rows: list[dict[str, Any]] = told["rows"]
    assert [(row["mode"], row["concurrency"], row["rate"]) for row in rows] == [
        (mode, level, rate) for level, rate in ((1, None), (3, None), (None, 50.0)) for mode in names(rows)
    ]
    assert names(rows)[0] == "ar"
    assert (told["model"], told["device"], told["dtype"]) == ("tiny", "cpu", "float32")
    assert (told["prompts"], told["prompt_count"], told["max_tokens"]) == ("humaneval", 3, 6)
    for row in rows:
        assert row["requests"] == 7
        assert 0 < row["tokens"] <= 7 * 6
        assert row["share_forward"] + row["share_head"] + row["share_idle"] == pytest.approx(1)
        assert 0 < row["kv_mean"] <= row["kv_peak"] < 1
        assert 0 < row["explained"] < 1
        assert row["first_ms_p50"] <= row["first_ms_p95"] <= row["latency_ms_p95"]
    same = {row["mode"]: row["tokens"] for row in rows}
    assert same["verified"] == same["ar"]
    assert picture.read_text().lstrip().startswith("<?xml")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "3 prompts of humaneval, answers of 6 tokens at most"
    assert len([line for line in lines if line.startswith("verified")]) == 2 * 3  # in both tables


@pytest.mark.parametrize("process", ["--no-engine-process", "--engine-process"])
def test_http_stands_beside_the_engine(
    data: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], process: str
) -> None:
    out = tmp_path / "out.json"
    asked = ("--model", checkpoint, "--limit", "3", "--requests", "7", "--max-tokens", "6", "--mode", "ar,verified")
    assert run(*asked, "--concurrency", "3", "--http", process, "--json", str(out)) == 0
    told = json.loads(out.read_text())
    for direct, served in zip(told["rows"], told["served"], strict=True):
        assert [served[name] for name in ("mode", "concurrency", "requests", "tokens")] == [
            direct[name] for name in ("mode", "concurrency", "requests", "tokens")
        ]
        assert served["direct_tokens_per_second"] == direct["tokens_per_second"]
        assert served["share"] == pytest.approx(served["tokens_per_second"] / direct["tokens_per_second"])
        assert served["direct_cpu_us"] == pytest.approx(1e6 * direct["cpu_seconds"] / direct["tokens"])
        assert served["first_byte_ms_p50"] <= served["first_text_ms_p50"] <= served["answer_ms_p50"]
        assert served["chunks"] >= 7 * 3  # the role, the end and the usage of each
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("verified")]) == 3


def test_a_client_that_is_refused_fails_the_run() -> None:
    body = {"model": "gone", "messages": [{"role": "user", "content": "x"}]}
    with serving() as served, pytest.raises(ServerError, match=r"the clients failed: .*model `gone` not found"):
        Load(int(served.url.rsplit(":", 1)[1]), [body], 1).visits()


def names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["mode"] for row in rows))


def test_transformers_stand_beside(
    data: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "out.json"
    asked = ("--model", checkpoint, "--limit", "2", "--max-tokens", "5", "--mode", "ar", "--concurrency", "1")
    assert run(*asked, "--baseline", "transformers", "--baseline-limit", "1", "--json", str(out)) == 0
    [row] = json.loads(out.read_text())["baseline"]
    assert (row["name"], row["requests"]) == ("transformers", 1)
    assert 0 < row["tokens"] <= 5
    assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    assert "\ntransformers  1" in capsys.readouterr().out


def test_transformers_write_what_ar_writes(data: Path, checkpoint: str) -> None:
    pytest.importorskip("transformers")
    from openmercury.engine.params import SamplingParams

    llm = LLM(checkpoint, device="cpu", dtype="float32")
    ids = [prompts.load("mbpp", data, llm.tokenizer).prompts[0]]
    params = SamplingParams(mode="ar", max_tokens=20, ignore_eos=True)
    assert baseline.answers(llm, ids, 20, ignore_eos=True) == [llm.generate_batch(ids, params)[0].token_ids]


@pytest.mark.skipif(not packable(FORMATS["int8"]), reason="no 8-bit products here")
def test_the_baseline_beside_int8_meets_activations_of_its_format(checkpoint: str) -> None:
    llm = LLM(checkpoint, dtype="int8")
    assert len(baseline.answers(llm, [[5, 6, 7]], 4, ignore_eos=True)[0]) == 4


def test_forwards_alone(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(probe.COPIED_BYTES, "cpu", 1 << 20)
    out = tmp_path / "out.json"
    assert run("--model", checkpoint, "--forward", "1,8", "--context", "32", "--json", str(out)) == 0
    told = json.loads(out.read_text())
    assert [row["positions"] for row in told["forwards"]] == [1, 8]
    assert told["copy_bytes_per_second"] > 0
    assert "rows" not in told  # no prompts were asked for, and none needed
    assert "one forward of one request behind 32 tokens" in capsys.readouterr().out


def test_random_weights_are_called_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SHAPES, "small", tiny.config().model_copy(update={"max_context": 2048}))
    out = tmp_path / "out.json"
    asked = ("--random-weights", "small", "--concurrency", "1,2", "--context", "16", "--simulated-tpf", "3")
    assert run(*asked, "--json", str(out)) == 0
    told = json.loads(out.read_text())
    assert told["model"] == "small with random weights"
    assert [(row["mode"], row["concurrency"], row["simulated_tpf"]) for row in told["simulated"]] == [
        (mode, level, 1.0 if mode == "ar" else 3.0) for level in (1, 2) for mode in ("ar", "verified", "diffusion")
    ]
    shown = capsys.readouterr().out
    assert "simulated TPF" in shown
    assert "simulated tok/s" in shown


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--concurrency", "0"], "--concurrency '0' should be whole numbers from 1 on"),
        (["--concurrency", "1,x"], "--concurrency '1,x' should be whole numbers"),
        (["--rate", "0"], "--rate '0' should be numbers above 0"),
        (["--rate", "nan"], "--rate 'nan' should be numbers above 0"),
        (["--rate", "inf"], "--rate 'inf' should be numbers above 0"),
        (["--forward", "-1"], "--forward '-1' should be whole numbers"),
        (["--mode", "fast"], "--mode 'fast' is unknown here: use ar,"),
        (["--requests", "0"], "--requests 0 should be above 0"),
        (["--limit", "0"], "--limit 0 should be above 0"),
        (["--prompts", "poems"], "'poems' is not one of 'humaneval', 'mbpp', 'long'"),
        (
            ["--simulated-tpf", "4"],
            "--simulated-tpf has no effect here: it goes with --random-weights and --concurrency",
        ),
        (
            ["--random-weights", "qwen2.5-7b", "--rate", "1"],
            "--rate has no effect here: it goes with a checkpoint, not with --random-weights",
        ),
        (["--random-weights", "qwen2.5-7b", "--mode", "auto"], "--mode 'auto' is unknown here"),
        (
            ["--random-weights", "qwen2.5-7b", "--concurrency", "1", "--picture", "a.png"],
            "--picture has no effect here",
        ),
        (["--random-weights", "qwen2.5-7b", "--prompts", "mbpp"], "--prompts has no effect here"),
        (["--random-weights", "qwen2.5-7b", "--forward", "1", "--simulated-tpf", "2"], "--simulated-tpf has no effect"),
        (["--simulated-tpf", "0"], "--simulated-tpf 0.0 should be above 0"),
        (["--forward", "1", "--mode", "ar"], "--mode has no effect here: it goes with --concurrency or --rate"),
        (["--concurrency", "1", "--seed", "3"], "--seed has no effect here: it goes with --rate"),
        (["--concurrency", "1", "--context", "9"], "--context has no effect here: it goes with --forward or"),
        (["--engine-process"], "--engine-process has no effect here: it goes with --http"),
        (["--rate", "1", "--http"], "--http has no effect here: it goes with --concurrency over a checkpoint"),
        (["--baseline-limit", "3"], "--baseline-limit has no effect here: it goes with --baseline"),
        (
            ["--forward", "1", "--picture", "a.png"],
            "--picture has no effect here: it goes with --concurrency over a checkpoint",
        ),
    ],
)
def test_wrong_usage_exits_2(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", *options]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: str, data: Path
) -> None:
    assert run("--random-weights", "gpt-5") == 1
    assert capsys.readouterr().err.startswith("error: there is no shape 'gpt-5': use one of qwen2.5-1.5b")
    assert run("--concurrency", "1", "--picture", "speed.bmp") == 1
    assert "should end in .png or .svg" in capsys.readouterr().err
    for library in ("matplotlib", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    assert run("--concurrency", "1", "--picture", "speed.png") == 1
    assert "--picture needs matplotlib: pip install 'openmercury[bench]'" in capsys.readouterr().err
    assert run("--model", checkpoint, "--concurrency", "1", "--baseline", "transformers") == 1
    assert "this needs the library transformers: pip install" in capsys.readouterr().err


def test_prompt_sets(data: Path) -> None:
    tokenizer = byte_level()
    sets = {name: prompts.load(name, data, tokenizer) for name in prompts.SETS}
    assert (len(sets["humaneval"].prompts), len(sets["mbpp"].prompts)) == (164, 40)
    assert "add 11." in tokenizer.decode(sets["mbpp"].prompts[0])
    long = sets["long"]
    assert (long.max_tokens, long.ignore_eos) == (1000, True)
    assert all(0.8 * prompts.LONG_TOKENS < len(ids) <= prompts.LONG_TOKENS + 40 for ids in long.prompts)
    assert long.prompts == prompts.load("long", data, tokenizer).prompts
    assert len({tuple(ids) for ids in long.prompts}) == len(long.prompts) > 5
    assert long.with_limits(2, 7) == prompts.PromptSet("long", long.texts[:2], long.prompts[:2], 7, ignore_eos=True)
    with pytest.raises(InputError, match="no prompt set 'poems': use one of humaneval"):
        prompts.load("poems", data, tokenizer)
    (data / "mbpp" / "mbpp.jsonl.xz").unlink()
    with pytest.raises(DataError, match="mbpp"):
        prompts.load("long", data, tokenizer)
