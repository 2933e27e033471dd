"""`import` and `export`: what goes wrong before and while a folder is made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from openmercury.cli import importer, main
from openmercury.model.convert import save_hf
from tests import tiny

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    import torch

    save_hf(tiny.network(dtype=torch.float32, of=tiny.config(adapter=False)), tmp_path / "hf")
    return tmp_path / "hf"


def test_a_folder_is_imported(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert main.main(["import", str(source), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "weights.json"}


def test_bad_sources_leave_nothing_behind(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03")
    (tmp_path / "empty").mkdir()
    for bad, told in [
        (tmp_path / "none", "there is no"),
        (tmp_path / "cut.gguf", "is not a whole GGUF file"),
        (tmp_path / "empty", "it has no config.json"),
    ]:
        assert main.main(["import", str(bad), str(out)]) == 1
        shown = capsys.readouterr()
        assert told in shown.err
        assert shown.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "empty", "hf"]
    out.mkdir()
    assert main.main(["import", str(source), str(out)]) == 1
    assert "exists: name a new folder" in capsys.readouterr().err


def test_hub_ids_need_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main.main(["import", "owner/name", "out"]) == 1
    assert "pip install 'openmercury[hub]'" in capsys.readouterr().err


def test_hub_ids_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: f"all of {name}")
    monkeypatch.setattr(hub, "hf_hub_download", lambda name, file: f"{file} of {name}")
    assert importer._local("owner/name-1.5B") == Path("all of owner/name-1.5B")
    assert importer._local("owner/name/q/model.gguf") == Path("q/model.gguf of owner/name")
    assert importer._local("not/a/hub/id") == Path("not/a/hub/id")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert importer._local("owner/name") == Path("owner/name")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", fail)
    assert main.main(["import", "owner/name", "out"]) == 1
    assert "(no network): check the name and the network" in capsys.readouterr().err


def test_export_needs_a_run(tmp_path: Path, capsys: Capture) -> None:
    assert main.main(["export", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert main.main(["export", str(tmp_path), str(tmp_path / "out")]) == 1
    assert main.main(["export", str(tmp_path), str(tmp_path / "out"), "--quantization", "Q1"]) == 1
    first, second, third = capsys.readouterr().err.splitlines()
    assert "there is no folder" in first
    assert "holds no training state" in second
    assert "'Q1' is unknown: use one of" in third
    assert not list(tmp_path.iterdir())
