"""`data prepare` from a small mixed tree: the same bits whoever does the work and wherever it was stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openmercury.config import load_config
from openmercury.data import executors, pipeline, report, stages
from openmercury.data.config import PrepareRecipe
from openmercury.data.decontaminate import BenchmarkIndex, Item
from openmercury.data.document import Document
from openmercury.data.screen import Screen
from openmercury.data.shards import read_manifest, read_shards
from openmercury.data.sources import Drop
from openmercury.errors import DataError
from openmercury.llm import default_model
from openmercury.text.tokenizer import Tokenizer

pytest.importorskip("detect_secrets")
pytest.importorskip("rensa")

MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software … The above "
    "copyright notice "
    "and this permission notice shall be included in all copies or substantial portions of the Software."
)


def function(name: str, lines: int = 12) -> str:
    body = "".join(f"    total += {name}_{place} * {place}\n" for place in range(lines))
    return f"def {name}(value):\n    total = value\n{body}    return total\n"


def tree(folder: Path, files: int = 40) -> Path:
    """A package with a licence, one exact and one near duplicate, and what must be left out."""
    source = folder / "source"
    (source / "pkg" / "_vendor").mkdir(parents=True)
    (source / "gpl").mkdir()
    (source / "LICENSE").write_text(MIT)
    (source / "gpl" / "COPYING").write_text("GNU GENERAL PUBLIC LICENSE Version 3")
    for number in range(files):
        (source / "pkg" / f"m{number:03}.py").write_text(function(f"f{number}"))
    (source / "pkg" / "copy.py").write_text(function("f3"))
    (source / "pkg" / "near.py").write_text(function("long", 60))
    (source / "pkg" / "nearer.py").write_text(function("long", 60) + "\nprint(1)\n")
    (source / "pkg" / "bad.py").write_text("def broken(:\n    pass  # " + "x" * 60)
    (source / "pkg" / "bytes.py").write_bytes(b"\x00\x01" * 100)
    (source / "pkg" / "latin.py").write_bytes("# é\n".encode("latin-1") * 30)
    (source / "pkg" / "wide.py").write_text(f"x = '{'y' * 2000}'\n")
    (source / "pkg" / "mail.py").write_text(function("mail") + "AUTHOR = 'someone@firm.org'\n")
    (source / "pkg" / "_vendor" / "other.py").write_text(function("vendored"))
    (source / "gpl" / "g.py").write_text(function("copyleft"))
    (source / "pkg" / "run").write_text("#!/usr/bin/env bash\n" + "echo one two three four five\n" * 3)
    (source / "link.py").symlink_to("pkg/m000.py")
    with zipfile.ZipFile(folder / "wheel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("wheel-1.0.dist-info/METADATA", "Name: wheel\nLicense-Expression: MIT\n\n")
        wheel.writestr("wheel/a.py", function("packed"))
    with tarfile.open(folder / "sdist-1.0.tar.gz", "w:gz") as sdist:
        for name, text in (("sdist-1.0/PKG-INFO", "License: MIT\n\n"), ("sdist-1.0/b.py", function("sdist"))):
            (folder / "entry").write_text(text)
            sdist.add(folder / "entry", name)
    return folder


def recipe(folder: Path, out: str, **more: object) -> PrepareRecipe:
    sources = [{"kind": "folder", "path": folder / "source"}, {"kind": "archives", "path": folder}]
    given = {"out": folder / out, "tokenizer": default_model(), "licences": ["MIT"], "sources": sources}
    fixed = {
        "decontaminate": False,
        "pictures": False,
        "examples": {"fim": 0.0, "functions": 0.0},
        "shard_bytes": 100_000,
        "workers": 1,
    }
    return PrepareRecipe.model_validate({**given, **fixed, **more})


def bits(folder: Path) -> dict[str, str]:
    """What must not depend on who made it: shards and manifest."""
    kept = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs in this process: a fresh one costs a second."""
    monkeypatch.setattr(executors, "run_here", lambda job, inputs, workers: map(job, inputs))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmercury.data.sources.folder.BATCH_FILES", 8)


@pytest.mark.usefixtures("inline")
def test_keeps_what_is_good_and_counts_the_rest(tmp_path: Path) -> None:
    outcome = pipeline.prepare(recipe(tree(tmp_path), "out"))
    assert outcome is not None
    drops = {reason: count for (_, reason), count in outcome.ledger.drops.items()}
    assert drops == {
        "link": 1,
        "no language of the recipe": 4,  # LICENSE and COPYING have no extension, METADATA and PKG-INFO neither
        "path on the list to skip": 1,
        "binary": 1,
        "mixed or unknown encoding": 1,
        "licence GPL-3.0-only": 1,
        "line too long": 1,
        "syntax error": 1,
        "exact duplicate": 1,
        "near duplicate": 1,
    }
    assert outcome.kept == 40 + 1 + 1 + 1 + 2  # modules, one of the near ones, mail, run, archives
    assert outcome.ledger.scrubbed == 1
    tokenizer = Tokenizer.load(default_model())
    text = tokenizer.decode(read_shards(tmp_path / "out").ids.tolist())
    assert "someone@firm.org" not in text
    assert "<EMAIL>" in text
    assert "def packed(" in text
    assert "def sdist(" in text
    assert "copyleft" not in text
    manifest = read_manifest(tmp_path / "out")
    assert set(manifest.languages) == {"python", "bash"}
    assert manifest.counts.examples == outcome.kept
    assert not (tmp_path / "out" / ".work").exists()
    told = report.markdown(outcome)
    assert "| filter | line too long | 1 |" in told
    assert "| python |" in told


@pytest.mark.usefixtures("inline")
def test_a_second_run_finds_the_first(tmp_path: Path) -> None:
    pipeline.prepare(recipe(tree(tmp_path), "out"))
    assert pipeline.prepare(recipe(tmp_path, "out", workers=2)) is None
    with pytest.raises(DataError, match="another recipe"):
        pipeline.prepare(recipe(tmp_path, "out", seed=1))


@pytest.mark.usefixtures("inline")
def test_an_empty_corpus_and_a_full_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    only = [{"kind": "folder", "path": tmp_path / "source"}]
    with pytest.raises(DataError, match="nothing is left of 0 units"):
        pipeline.prepare(recipe(tmp_path, "out", sources=only))
    tree(tmp_path / "full")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        pipeline.prepare(recipe(tmp_path / "full", "out"))
    assert [path.name for path in (tmp_path / "full" / "out").rglob("*") if path.is_file()] == ["lock"]


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_stopped_while_it_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    small = {"shard_bytes": 5_000}
    given = recipe(tree(tmp_path), "out").model_copy(update=small)
    finish, left = pipeline._finish, iter(range(steps))

    def stopped(do: Callable[..., None]) -> Callable[..., None]:
        def step(*paths: object) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            do(*paths)

        return step

    def killed(*what: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopped(os.replace))
            patch.setattr(Path, "unlink", stopped(Path.unlink))
            finish(*what)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.prepare(given)
    assert pipeline.prepare(given, tell=report.write) is not None
    assert (tmp_path / "out" / "report.md").exists()
    pipeline.prepare(recipe(tmp_path, "whole").model_copy(update=small))
    assert bits(tmp_path / "out") == bits(tmp_path / "whole")


@pytest.mark.usefixtures("inline")
def test_a_full_disk_at_the_end_loses_no_report(tmp_path: Path) -> None:
    def full(_: pipeline.Outcome) -> None:
        raise DataError("no space")

    with pytest.raises(DataError, match="no space"):
        pipeline.prepare(recipe(tree(tmp_path), "out"), tell=full)
    assert pipeline.prepare(recipe(tmp_path, "out"), tell=report.write) is not None
    assert (tmp_path / "out" / "report.md").exists()


@pytest.mark.usefixtures("inline")
def test_a_folder_of_weights_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(DataError, match="name another folder"):
        pipeline.prepare(recipe(tree(tmp_path), "."))
    assert not (tmp_path / ".work").exists()


@pytest.mark.usefixtures("inline")
def test_two_runs_do_not_write_the_same_folder(tmp_path: Path) -> None:
    given = recipe(tree(tmp_path), "out")
    with pipeline._alone(given.out / ".work"), pytest.raises(DataError, match="another run is at work"):
        pipeline.prepare(given)


def test_code_nested_deeply_is_a_drop() -> None:
    screen = Screen(BenchmarkIndex.of([Item("set", "g", "def g(x):\n    return x\n", "g", "the same")]))
    text = "def f(a):\n    if a == 0:\n        pass\n" + "    elif a == 1:\n        pass\n" * 900
    document = Document("a", text, "python", "MIT", "a.py")
    assert stages._decontaminate(screen, document) == Drop("nested too deeply to compare")


def command(folder: Path, out: str, workers: int) -> list[str]:
    """The command line of the recipe below."""
    told = [str(folder / "recipe.toml"), f"out={folder / out}", f"workers={workers}"]
    return [sys.executable, "-m", "openmercury", "data", "prepare", *told]


@pytest.mark.slow
def test_the_same_with_two_workers_and_after_a_kill(tmp_path: Path) -> None:
    tree(tmp_path)
    for number in range(60):
        with zipfile.ZipFile(tmp_path / f"p{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"p{number}-1.0.dist-info/METADATA", "License-Expression: MIT\n\n")
            for place in range(20):
                wheel.writestr(f"p/{place}.py", function(f"g{number}_{place}"))
    (tmp_path / "recipe.toml").write_text(
        f'out = ""\ntokenizer = "{default_model()}"\nlicences = ["MIT"]\ndecontaminate = false\npictures = false\n'
        f'shard_bytes = 100_000\n[[sources]]\nkind = "folder"\npath = "{tmp_path}/source"\n'
        f'[[sources]]\nkind = "archives"\npath = "{tmp_path}"\n'
    )
    subprocess.run(command(tmp_path, "one", 1), check=True)
    subprocess.run(command(tmp_path, "two", 2), check=True)
    process = subprocess.Popen(command(tmp_path, "killed", 2))
    units = tmp_path / "killed" / ".work" / "units"
    while process.poll() is None and len(list(units.glob("*.safetensors"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)  # its workers end by themselves
    assert process.wait() == -signal.SIGKILL
    assert 3 <= len(list(units.glob("*.safetensors"))) < 60
    subprocess.run(command(tmp_path, "killed", 2), check=True)
    assert bits(tmp_path / "one") == bits(tmp_path / "two") == bits(tmp_path / "killed")
    assert len(bits(tmp_path / "one")) > 3


def _die(_: object) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.slow
def test_a_killed_worker_is_told() -> None:
    with pytest.raises(DataError, match="a worker was killed"):
        list(executors.run_here(_die, [1, 2], 1))


@pytest.mark.slow
def test_the_same_on_a_cluster_of_two_nodes(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    tree(tmp_path)
    pipeline.prepare(recipe(tmp_path, "here"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        pipeline.prepare(recipe(tmp_path, "ray", executor="ray", workers=2, address=cluster.address))
        assert len(ray.nodes()) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert bits(tmp_path / "here") == bits(tmp_path / "ray")


def test_recipe_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('out = "o"\ntokenizer = "t"\nlicences = ["MIT"]\n[[sources]]\nkind = "folder"\npath = "."\n')
    assert load_config(PrepareRecipe, path, ["workers=3"]).workers == 3
    with pytest.raises(Exception, match="no language 'cobol' here"):
        load_config(PrepareRecipe, path, ['languages=["cobol"]'])
