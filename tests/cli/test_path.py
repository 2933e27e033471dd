"""The newcomer's path of docs/training.md, its commands in their order, on a tiny model and a folder of our code."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from openmercury.cli import main
from tests.eval import made
from tests.eval.conftest import anywhere as anywhere

ROOT = Path(__file__).parents[2]
SMALL = {  # behind the commands as they are written
    "prepare": ["decontaminate=false"],
    "train": ["mask_id=511", "steps=4", "data.rows=2", "eval.every=2", "eval.rows=2", "device=cpu", "compile=false"],
    "eval": ["--limit", "1", "--max-tokens", "8", "--device", "cpu"],
    "generate": ["--max-tokens", "8", "--device", "cpu"],
}


def written() -> list[list[str]]:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.partition("## From a folder of code")[2].partition("\n## ")[0]
    lines = re.findall(r"(?m)^openmercury (.*)$", section)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.slow
def test_from_a_folder_of_code_to_an_adapted_model(
    anywhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_checkpoint(tmp_path / "models" / "openmercury-nano")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.copytree(ROOT / "openmercury" / "train", tmp_path / "src")
    monkeypatch.setenv("OPENMERCURY_EVAL_DATA", str(made.write_data(tmp_path / "eval")))
    monkeypatch.setenv("OPENMERCURY_MODEL", str(tmp_path / "models" / "openmercury-nano"))
    monkeypatch.chdir(tmp_path)
    assert len(written()) == 9
    for words in written():
        name = words[1] if words[0] == "data" else words[0]
        assert main.main([*words, *SMALL.get(name, [])]) == 0, (words, capsys.readouterr().err)
    told = capsys.readouterr().out
    assert "draft_run" in told
    assert "1 of 1 answers identical (100.0%)" in told
    assert (tmp_path / "models" / "mine" / "adapter.gguf").exists()
