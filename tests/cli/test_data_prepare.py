"""`data prepare` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from openmercury.cli import main
from openmercury.data import executors
from openmercury.llm import default_model

pytest.importorskip("detect_secrets")
pytest.importorskip("rensa")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(executors, "run_here", lambda job, inputs, workers: map(job, inputs))
    (tmp_path / "code").mkdir()
    for name in "ab":
        (tmp_path / "code" / f"{name}.py").write_text(
            f"def {name}(values):\n    return [{name}(one) for one in values]\n"
        )
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'out = "{tmp_path}/out"\ntokenizer = "{default_model()}"\nlicences = ["own"]\ndecontaminate = false\n'
        f'[[sources]]\nkind = "folder"\npath = "{tmp_path}/code"\nlicence = "own"\n'
    )
    return path


def test_makes_a_folder_with_a_report(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main.main(["data", "prepare", str(recipe)]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/out/report.md"
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {
        "shard-00000.safetensors",
        "manifest.json",
        "report.md",
        "languages.png",
        "drops.png",
        "lengths.png",
    }
    assert "| python |" in (tmp_path / "out" / "report.md").read_text()
    assert main.main(["data", "prepare", str(recipe)]) == 0
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sources.0.kind=tape", "sources.0.kind should be one of"),
        ("sources.0.path=/nowhere", "correct `path` of source 1"),
        ("filters.max_lime=3", "did you mean filters.max_line"),
        ('languages=["cobol"]', "no language 'cobol' here"),
        ("decontaminate=true", "OPENMERCURY_EVAL_DATA"),
        ("tokenizer=/nowhere", "has no tokenizer.json"),
    ],
)
def test_mistakes_are_told_in_one_line(
    recipe: Path, override: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENMERCURY_EVAL_DATA", raising=False)
    assert main.main(["data", "prepare", str(recipe), override]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert told in lines[-1]
