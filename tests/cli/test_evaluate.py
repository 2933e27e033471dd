"""`eval` and `compare` end to end, with a benchmark and models that are made up and a sandbox that is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from openmercury.cli import generate, main
from openmercury.errors import DataError
from openmercury.eval import tasks
from openmercury.eval.http import Remote
from tests.eval.runs import BatchLLM, Server, Sums, chat_reply, right


@pytest.fixture(autouse=True)
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks of the same prompts; runs go into an empty folder."""
    monkeypatch.setitem(tasks.TASKS, "sums", Sums())
    monkeypatch.setitem(tasks.TASKS, "sums+", Sums("sums+"))
    monkeypatch.setitem(tasks.GROUPS, "adding", ("sums", "sums+"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BatchLLM:
    return install(monkeypatch, BatchLLM(tmp_path / "fake"))


def install(monkeypatch: pytest.MonkeyPatch, llm: BatchLLM) -> BatchLLM:
    monkeypatch.setattr(generate, "load_llm", lambda *_: llm)
    return llm


def run(*words: str) -> int:
    return main.main(["eval", *words])


def told(folder: Path | str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "report.json").read_text())
    return found


def row(out: str, name: str) -> list[str]:
    """The cells of a task's line."""
    return next(line.split() for line in out.splitlines() if line.split()[:1] == [name])


# --- generating and judging ------------------------------------------------------------------------------------------


def test_answers_judges_and_reports(usable: None, llm: BatchLLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.reply = lambda prompt: "" if prompt == "Give 2" else right(prompt)
    line = ["sums", "--mode", "ar", "--max-tokens", "9", "--limit", "4", "--json", "new/figures.json"]
    assert run(*line) == 0
    out = capsys.readouterr().out
    assert row(out, "sums")[:5] == ["sums", "75.0%", "30.1%–95.4%", "4", "4"]
    assert "sums: 4 of 6 problems are answered\n" in out
    assert "sums: 1 answers are empty and count as wrong\n" in out
    assert {(one.mode, one.max_tokens, one.temperature) for one in llm.params} == {("ar", 9, 0.0)}
    [folder] = Path("eval-runs").iterdir()
    assert folder.name.startswith("fake-ar-")
    assert f"report: {folder}/report.md" in out
    assert told(folder) == json.loads(Path("new/figures.json").read_text())
    [figures] = told(folder)["tasks"]
    assert (figures["passed"], figures["judged"], figures["empty"]) == (3, 4, 1)
    assert figures["cost"] == {"tokens": 24, "forwards": 8, "tpf": 3.0, "tpf_mean": 3.0}
    settings = told(folder)["run"]["settings"]
    assert (settings["kind"], settings["mode"], settings["max_tokens"]) == ("openmercury", "ar", 9)
    verdicts = [json.loads(one) for one in (folder / "verdicts" / "sums.chat.jsonl").read_text().splitlines()]
    assert [one["status"] for one in verdicts] == ["passed", "passed", "failed", "passed"]
    assert verdicts[2]["detail"] == "NameError: name 'f' is not defined"


def test_the_same_command_resumes_and_other_settings_go_elsewhere(usable: None, llm: BatchLLM) -> None:
    assert run("sums", "--mode", "ar", "--limit", "2") == 0
    assert run("sums", "--mode", "ar") == 0
    assert len(llm.params) == 6
    assert run("sums", "--mode", "ar", "--max-tokens", "9") == 0
    assert len(llm.params) == 12
    assert len(list(Path("eval-runs").iterdir())) == 2


def test_how_is_that_of_the_last_session_that_asked(llm: BatchLLM) -> None:
    line = ["sums", "--generate-only", "--out", "out", "--limit"]
    for limit, concurrency, shown in (("2", "3", 3), ("2", "5", 3), ("4", "7", 7)):
        assert run(*line, limit, "--concurrency", concurrency) == 0
        assert told()["run"]["how"]["concurrency"] == shown
        assert json.loads(Path("out/run.json").read_text()) == told()["run"]


def test_the_cache_is_as_large_as_asked(monkeypatch: pytest.MonkeyPatch, llm: BatchLLM) -> None:
    seen: list[object] = []

    def load(*given: object) -> BatchLLM:
        seen.append(given[-1])
        return llm

    monkeypatch.setattr(generate, "load_llm", load)
    assert run("sums", "--generate-only", "--cache-tokens", "640") == 0
    assert run("sums", "--generate-only") == 0
    assert seen == [{"cache_tokens": 640}, {}]
    assert run("sums", "--cache-tokens", "640", "--transformers") == 2


def test_tasks_of_the_same_prompts_share_answers(usable: None, llm: BatchLLM) -> None:
    assert run("adding", "--mode", "ar", "--out", "out") == 0
    assert len(llm.params) == 6
    assert [one["task"] for one in told()["tasks"]] == ["sums", "sums+"]
    assert [path.name for path in Path("out/samples").iterdir()] == ["sums.chat.jsonl"]


def test_another_task_is_added_to_the_report(usable: None, llm: BatchLLM) -> None:
    assert run("sums", "--mode", "ar", "--out", "out") == 0
    [before] = told()["tasks"]
    assert run("sums+", "--mode", "ar", "--out", "out", "--json", "figures.json") == 0
    assert told()["tasks"][0] == before
    assert [one["task"] for one in told()["tasks"]] == ["sums", "sums+"]
    assert [line.split()[1] for line in Path("out/report.md").read_text().splitlines()[4:6]] == ["sums", "sums+"]
    assert [one["task"] for one in json.loads(Path("figures.json").read_text())["tasks"]] == ["sums+"]


def test_apart_gives_the_same_score(
    no_sandbox: None, llm: BatchLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sums", "--mode", "ar", "--out", "out") == 1
    assert capsys.readouterr().err == "error: no sandbox here: install bubblewrap\n"
    assert llm.params == []  # refused before hours of generating
    assert run("sums", "--mode", "ar", "--out", "out", "--generate-only") == 0
    assert row(capsys.readouterr().out, "sums")[1:4] == ["–", "–", "0"]
    assert run("--score", "out") == 1
    monkeypatch.undo()


def test_score_judges_what_is_there(usable: None, llm: BatchLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sums", "--mode", "ar", "--out", "out", "--generate-only") == 0
    capsys.readouterr()
    assert run("--score", "out") == 0
    assert row(capsys.readouterr().out, "sums")[1] == "100.0%"
    assert told()["tasks"][0]["passed"] == 6
    assert run("sums+", "--score", "out") == 0
    assert [(one["task"], one["passed"]) for one in told()["tasks"]] == [("sums", 6), ("sums+", 6)]
    assert run("--score", "out") == 0
    assert [one["passed"] for one in told()["tasks"]] == [6, 6]
    assert run("humaneval", "--score", "out") == 1
    assert "out has no answers for humaneval" in capsys.readouterr().err


def test_many_samples(usable: None, llm: BatchLLM, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []

    def every_other(prompt: str) -> str:
        seen.append(prompt)
        return right(prompt) if len(seen) % 2 else "f = None"

    llm.reply = every_other
    assert run("sums", "--mode", "ar", "-n", "2", "--temperature", "0.8", "--top-p", "0.9", "--out", "out") == 0
    assert len({one.seed for one in llm.params}) == 12
    assert {(one.temperature, one.top_p) for one in llm.params} == {(0.8, 0.9)}
    scores = told()["tasks"][0]["scores"]
    assert (scores["1"]["value"], scores["2"]["value"]) == (0.5, 1.0)
    assert "sums: pass@2 100.0% (100.0%–100.0%)" in capsys.readouterr().out


def test_a_style_is_asked_for(no_sandbox: None, llm: BatchLLM) -> None:
    assert run("sums", "--mode", "ar", "--style", "completion", "--out", "out", "--generate-only") == 0
    assert llm.params[0].stop == ("\n", "#", ";", "!", "?")
    assert Path("out/samples/sums.completion.jsonl").exists()


def test_a_server_dies_and_the_same_command_goes_on(
    usable: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(Remote.__init__.__kwdefaults__, "attempts", 1)
    monkeypatch.setenv("SUMS_KEY", "sk-hidden")
    alive = [True]
    with Server(lambda number, _, body, __: chat_reply(body) if alive[0] and number != 3 else None) as server:
        line = [
            "sums",
            "--base-url",
            server.url,
            "--model",
            "vendor/m",
            "--api-key-env",
            "SUMS_KEY",
            "--concurrency",
            "1",
        ]
        assert run(*line) == 1
        failed = capsys.readouterr()
        assert failed.err.startswith(f"error: {server.url} does not answer")
        assert failed.err.count("\n") == 1
        [folder] = Path("eval-runs").iterdir()
        assert len((folder / "samples" / "sums.chat.jsonl").read_text().splitlines()) == 2
        assert run(*line) == 0
    assert row(capsys.readouterr().out, "sums")[1] == "100.0%"
    assert len(server.asked) == 7
    assert folder.name.startswith("vendor-m-url-")
    assert not [path for path in folder.rglob("*") if path.is_file() and b"sk-hidden" in path.read_bytes()]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_task_without_data_does_not_end_the_others(
    usable: None, llm: BatchLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(Sums):
        def problems(self, *_: Any) -> Any:
            raise DataError("cannot read sums.jsonl.xz (cut); restore the file")

    monkeypatch.setitem(tasks.TASKS, "sums+", Broken("sums+", "more"))
    assert run("adding", "--mode", "ar", "--out", "out") == 1
    out = capsys.readouterr().out
    assert row(out, "sums")[1] == "100.0%"
    assert row(out, "sums+")[1:] == ["not", "run"]
    assert "sums+: not run: cannot read sums.jsonl.xz (cut); restore the file" in out
    assert told()["tasks"][1]["problem"].startswith("cannot read")
    assert run("sums+", "--mode", "ar", "--json", "none.json") == 1  # nothing to load a model for
    assert json.loads(Path("none.json").read_text())["tasks"][0]["problem"].startswith("cannot read")
    assert not Path("eval-runs").exists()


def test_another_run_s_folder_is_refused(llm: BatchLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sums", "--mode", "ar", "--out", "out", "--generate-only") == 0
    assert run("sums", "--mode", "verified", "--out", "out", "--generate-only") == 1
    assert "out holds a run with other settings (mode ar, now verified): give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("sumz", "there is no task 'sumz': did you mean 'sums'?"),
        ("--score nowhere", "nowhere/run.json cannot be read"),
        ("sums --base-url nowhere --model m", "'nowhere' is no base URL"),
        (
            "sums --base-url http://h/v1 --model m --api-key-env NO_SUCH",
            "--api-key-env names NO_SUCH, which is not set",
        ),
        ("sums --model nowhere", "there is no model folder nowhere"),
        ("sums --transformers --model nowhere", "there is no model folder nowhere"),
    ],
)
def test_mistakes_exit_1(line: str, told: str, usable: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 1
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "there is no task"),
        ("--score x --mode ar", "--mode goes with our own engine: drop it"),
        ("--score x --max-tokens 512", "--max-tokens goes with generating"),
        ("--score x --generate-only", "--generate-only goes with generating"),
        ("--score x -n 2", "--samples-per-task goes with generating at a --temperature above 0"),
        ("sums --threshold 0.5", "--threshold only acts in mode diffusion"),
        ("sums --limit 0", "--limit"),
        ("sums -n 2", "--samples-per-task goes with generating at a --temperature above 0"),
        ("sums --seed 1", "--seed goes with"),
        ("sums --transformers --mode ar", "--mode goes with our own engine"),
        ("sums --base-url http://h --model m --dtype float32", "--dtype goes with a checkpoint folder"),
        ("sums --base-url http://h", "--base-url needs --model"),
        ("sums --base-url http://h --transformers --model m", "exclude each other"),
        ("sums --api-key-env X", "--api-key-env goes with --base-url"),
        ("sums --generate-only --workers 2", "--workers goes with judging"),
        ("sums --style poem", "'poem' is not one of"),
    ],
)
def test_wrong_usage_exits_2(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 2
    assert told in capsys.readouterr().err


def test_a_style_that_a_task_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Sums, "styles", ("chat",))
    assert run("sums", "--style", "fill") == 2
    assert "sums has no --style fill: it has chat" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["sums", "Sums", "(chat,", "completion,", "fill)"] in [line.split() for line in lines]
    assert ["adding", "=", "sums", "sums+"] in [line.split() for line in lines]
    assert len({re.match(r"\S+ +", line).end() for line in lines}) == 1  # type: ignore[union-attr]


# --- comparing -------------------------------------------------------------------------------------------------------


def test_compare(usable: None, llm: BatchLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sums", "--mode", "ar", "--out", "a") == 0
    llm.reply = lambda prompt: "g = 3" if prompt == "Give 1" else right(prompt)
    assert run("sums", "--mode", "verified", "--out", "b", "--limit", "4") == 0
    capsys.readouterr()
    assert main.main(["compare", "a", "a"]) == 0
    assert capsys.readouterr().out.startswith("sums (chat): 6 of 6 answers identical (100.0%)\n")
    assert main.main(["compare", "a", "b"]) == 0
    assert capsys.readouterr().out == (
        "sums (chat): 3 of 4 answers identical (75.0%)\n"
        "  pass@1 over the 4 that both have judged: 100.0% and 75.0%\n"
        "  different: Sum/1\n"
    )


def test_compare_refuses_runs_that_asked_otherwise(llm: BatchLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sums", "--out", "a", "--generate-only") == 0
    assert run("sums", "--out", "b", "--generate-only", "--max-tokens", "9") == 0
    assert main.main(["compare", "a", "b"]) == 1
    assert "the two runs asked sums otherwise (the prompts or --max-tokens)" in capsys.readouterr().err


def test_compare_refuses_runs_of_different_tasks(llm: BatchLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sums", "--out", "a", "--generate-only") == 0
    assert run("sums", "--out", "b", "--generate-only", "--style", "completion") == 0
    assert main.main(["compare", "a", "b"]) == 1
    assert "no task in common" in capsys.readouterr().err
    assert main.main(["compare", "a", "nowhere"]) == 1
    assert "nowhere/run.json cannot be read" in capsys.readouterr().err
