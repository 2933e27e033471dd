"""`doctor` on whole and on broken checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from openmercury.cli import doctor, main
from openmercury.errors import SandboxError
from openmercury.eval import languages, sandbox
from openmercury.model import costs
from openmercury.model.convert import save_hf
from openmercury.model.weights import write_manifest
from tests import tiny

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(costs, "SECONDS", 0.0)
    monkeypatch.setattr(costs, "BYTES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sandbox, "usable_backend", lambda: "bubblewrap")
    monkeypatch.setattr(languages, "versions", lambda: {"python": "Python 3", "java": "javac 17", "php": None})
    save_hf(tiny.network(dtype=torch.float32, of=tiny.config(adapter=False)), tmp_path)
    write_manifest(tmp_path)
    return tmp_path


def test_a_whole_model(model: Path, capsys: Capture) -> None:
    assert main.main(["doctor", "--model", str(model), "--json", "--hashes"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["problems"] == []
    assert facts["model"]["architecture"] == "qwen2"
    assert facts["model"]["files"] == 1
    assert facts["device"] == ("cuda:0" if torch.cuda.is_available() else "cpu") or facts["device"] == "cuda"
    assert facts["dtype"] in facts["forward_ms"]
    assert set(facts["forward_ms"]["float32"]) == {str(rows) for rows in costs.ROWS}
    assert facts["widths"].keys() == {"draft_width", "draft_groups", "block_limit"}
    assert main.main(["doctor", "--model", str(model)]) == 0
    out = capsys.readouterr().out
    assert "qwen2, 0 M weights, no adapter, mode ar only, 1 files" in out
    assert "1 threads: OMP_NUM_THREADS=1" in out
    assert "forward   float32: milliseconds" in out
    assert "widths    drafts of" in out
    assert "java      javac 17\nphp       not installed: pass@1 for php is not run\n" in out
    assert out.endswith("all well\n")


def test_weights_counts_every_matrix(model: Path) -> None:
    config = tiny.config(adapter=False)
    matrices = [p for p in tiny.network(of=config).parameters() if p.ndim == 2]
    assert costs.weights_read(config) == sum(p.numel() for p in {id(p): p for p in matrices}.values())


@pytest.mark.parametrize(
    ("break_", "arguments", "told"),
    [
        (lambda f: (f / "model.safetensors").unlink(), [], "model.safetensors is missing: fetch it again"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), [], "has 1 bytes instead of"),
        (lambda f: flip(f / "model.safetensors"), ["--hashes"], "has the wrong sha256"),
        (lambda f: (f / "config.json").unlink(), [], "it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), [], "is not JSON"),
        (lambda f: None, ["--device", "quantum"], "device 'quantum' is unknown"),
    ],
)
def test_every_problem_names_its_remedy(
    break_: object, arguments: list[str], told: str, model: Path, capsys: Capture
) -> None:
    assert callable(break_)
    break_(model)
    assert main.main(["doctor", "--model", str(model), *arguments]) == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem")]
    assert len(problems) == 1
    assert told in problems[0]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_a_missing_adapter(model: Path, capsys: Capture) -> None:
    config = json.loads((model / "config.json").read_text())
    config["diffusion"] = {"mask_id": tiny.MASK, "adapter": {"rank": 4}}
    (model / "config.json").write_text(json.dumps(config))
    assert main.main(["doctor", "--model", str(model)]) == 1
    assert "lacks its adapter" in capsys.readouterr().out


def test_a_missing_torch(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main.main(["doctor", "--model", str(model)]) == 1
    assert "torch cannot be imported" in capsys.readouterr().out


def test_no_sandbox_is_told_and_not_fatal(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def refuse() -> str:
        raise SandboxError("no namespaces")

    monkeypatch.setattr(sandbox, "usable_backend", refuse)
    assert main.main(["doctor", "--model", str(model)]) == 0
    assert "sandbox   none: no namespaces" in capsys.readouterr().out


def test_too_little_memory(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(doctor, "_memory", lambda: {"total_gb": 0.0, "available_gb": -1.0})
    assert main.main(["doctor", "--model", str(model), "--device", "cpu"]) == 1
    assert "close programs or add memory" in capsys.readouterr().out
