"""`eval` and `demo` end to end, with a model that is made up and a sandbox that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openmercury.cli import demo, generate, main
from openmercury.errors import SandboxError
from openmercury.eval import sandbox
from openmercury.eval.humaneval import read_samples
from tests.eval.made import BatchLLM, DemoLLM, write_data

PALINDROME = '''Here you are:

```python
def is_palindrome(s):
    """Say whether s reads the same backwards.

    >>> is_palindrome("A man, a plan, a canal: Panama")
    True
    >>> is_palindrome("no")
    False
    """
    kept = [c.lower() for c in s if c.isalnum()]
    return kept == kept[::-1]
```
'''


@pytest.fixture
def usable() -> None:
    try:
        sandbox.usable_backend()
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise SandboxError("no sandbox here: install bubblewrap")

    monkeypatch.setattr(sandbox, "usable_backend", refuse)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_data(tmp_path / "data")
    monkeypatch.setenv("OPENMERCURY_EVAL_DATA", str(folder))
    return folder


def install(monkeypatch: pytest.MonkeyPatch, llm: Any) -> Any:
    monkeypatch.setattr(generate, "load_llm", lambda *_: llm)
    return llm


# --- eval ------------------------------------------------------------------------------------------------------------


def test_humaneval_generates_scores_and_writes(
    usable: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = install(monkeypatch, BatchLLM(wrong=["sum_2"]))
    figures, kept = tmp_path / "new" / "out.json", tmp_path / "kept.jsonl"
    line = ["eval", "humaneval", "--mode", "diffusion", "--threshold", "0.7", "--limit", "5", "--batch-size", "3"]
    assert main.main([*line, "--json", str(figures), "--samples", str(kept)]) == 0
    out = capsys.readouterr().out
    assert "pass@1     80.0% (4 of 5)" in out
    assert "TPF        3.00 (mean over tasks 3.00)" in out
    assert llm.batches == [3, 2]
    assert llm.params[0].threshold == 0.7
    assert llm.params[0].temperature == 0.0
    told = json.loads(figures.read_text())
    assert (told["pass@1"], told["n"], told["tokens"], told["forwards"], told["tpf"]) == (0.8, 5, 30, 10, 3.0)
    assert (told["mode"], told["threshold"], told["model"], told["device"]) == ("diffusion", 0.7, "fake", "cpu")
    assert told["seconds"] > 0
    assert told["verdicts"]["Made/2"] == "failed: AssertionError"
    assert told["verdicts"]["Made/1"] == "passed"
    assert len(read_samples(kept)) == 5


def test_humaneval_apart_gives_the_same_score(
    usable: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, BatchLLM(wrong=["sum_1"]))
    kept, figures = tmp_path / "kept.jsonl", tmp_path / "out.json"
    assert main.main(["eval", "humaneval", "--limit", "4", "--generate-only", "--samples", str(kept)]) == 0
    assert "pass@1" not in capsys.readouterr().out
    assert main.main(["eval", "humaneval", "--score", str(kept), "--json", str(figures)]) == 0
    assert "pass@1     75.0% (3 of 4)" in capsys.readouterr().out
    assert json.loads(figures.read_text())["pass@1"] == 0.75


def test_humaneval_without_sandbox_generates_only(
    no_sandbox: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = install(monkeypatch, BatchLLM())
    assert main.main(["eval", "humaneval", "--limit", "2"]) == 1
    assert capsys.readouterr().err == "error: no sandbox here: install bubblewrap\n"
    assert llm.batches == []  # refused before hours of generating
    kept = tmp_path / "kept.jsonl"
    assert main.main(["eval", "humaneval", "--limit", "2", "--generate-only", "--samples", str(kept)]) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--generate-only"], "--samples"),
        (["--score", "x.jsonl", "--mode", "ar"], "--mode has no effect"),
        (["--score", "x.jsonl", "--max-tokens", "512"], "--max-tokens has no effect"),
        (["--score", "x.jsonl", "--generate-only"], "--generate-only has no effect"),
        (["--threshold", "0.5"], "--threshold only acts in mode diffusion"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_wrong_usage_exits_2(options: list[str], told: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["eval", "humaneval", *options]) == 2
    assert told in capsys.readouterr().err


def test_missing_data_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("OPENMERCURY_EVAL_DATA", raising=False)
    assert main.main(["eval", "humaneval"]) == 1
    assert "OPENMERCURY_EVAL_DATA" in capsys.readouterr().err


def test_compare(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, BatchLLM())
    kept, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert main.main(["eval", "humaneval", "--limit", "4", "--generate-only", "--samples", str(kept)]) == 0
    lines = kept.read_text().splitlines()
    row = json.loads(lines[2])
    lines[2] = json.dumps({**row, "token_ids": [0]})
    other.write_text("\n".join(lines))
    capsys.readouterr()
    assert main.main(["eval", "compare", str(kept), str(kept)]) == 0
    assert capsys.readouterr().out == "identical answers: 4 of 4 (100.0%)\n"
    assert main.main(["eval", "compare", str(kept), str(other)]) == 0
    assert capsys.readouterr().out == "identical answers: 3 of 4 (75.0%)\ndifferent: Made/2\n"


# --- demo ------------------------------------------------------------------------------------------------------------


def test_demo_runs_the_models_own_examples(
    usable: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, DemoLLM(PALINDROME))
    assert main.main(["demo"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fake: 3M parameters on cpu in float32, loaded in 0.1 s\n")
    assert demo.PROMPT in out
    assert '  ok    is_palindrome("A man, a plan, a canal: Panama") -> True\n' in out
    assert "  2 examples hold\n" in out
    assert "per forward" in out
    assert out.rstrip().endswith(demo.NEXT)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (PALINDROME.replace("True", "False"), "1 of 2 doctest examples gave another result"),
        (PALINDROME.replace("kept ==", "kept / 0, kept =="), "2 of 2 doctest examples gave another result"),
        (PALINDROME.replace(">>>", "..."), "there is no doctest example in the code"),
        (PALINDROME.replace("def ", "deaf "), "SyntaxError: invalid syntax"),
        ("I would rather not.", "SyntaxError"),
        (PALINDROME.replace("    kept =", "    while True: pass\n    kept ="), "timeout"),
    ],
)
def test_demo_fails_where_the_examples_do(
    answer: str, told: str, usable: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, DemoLLM(answer))
    monkeypatch.setattr(demo, "TIMEOUT_SECONDS", 1.0)
    assert main.main(["demo", "--mode", "verified"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: the model's code does not pass its own doctest: ")
    assert told in captured.err
    assert "per forward" in captured.out


def test_demo_without_sandbox_runs_nothing(
    no_sandbox: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, DemoLLM(PALINDROME))
    monkeypatch.setattr(sandbox, "run_python", lambda *_, **__: pytest.fail("ran the code"))
    assert main.main(["demo"]) == 0
    assert "The code was not run: no sandbox here" in capsys.readouterr().out
