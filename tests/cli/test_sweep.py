"""`--sweep`: which runs it makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openmercury.cli import main
from openmercury.cli.errors import UsageProblem
from openmercury.cli.options import Settings
from openmercury.cli.sweep import USUAL, each, read
from openmercury.errors import SandboxError
from openmercury.eval import sandbox
from tests.eval.made import write_checkpoint, write_data


def test_words_become_values() -> None:
    assert read(["threshold=0.1,0.2", "mode=ar,diffusion"]) == {"threshold": (0.1, 0.2), "mode": ("ar", "diffusion")}
    assert read(["threshold,mode"]) == {"threshold": USUAL["threshold"], "mode": USUAL["mode"]}
    assert read(["block_size=8,16"]) == {"block_size": (8, 16)}


def test_each_mode_gets_what_acts_in_it() -> None:
    base = Settings(mode="verified", threshold=0.4, max_tokens=99)
    runs = dict(each(read(["mode=ar,verified,diffusion", "threshold=0.1,0.2", "block_size=8"]), base))
    assert list(runs) == [
        "ar", "verified-block_size-8", "diffusion-threshold-0.1-block_size-8", "diffusion-threshold-0.2-block_size-8",
    ]  # fmt: skip
    ar, verified, first, _ = runs.values()
    assert (ar.mode, ar.threshold, ar.block_size, ar.max_tokens) == ("ar", None, None, 99)
    assert (verified.threshold, verified.block_size) == (None, 8)
    assert (first.mode, first.threshold, first.block_size) == ("diffusion", 0.1, 8)


def test_settings_beside_the_sweep_stay_where_they_act() -> None:
    ar, diffusion = (one for _, one in each(read(["mode=ar,diffusion"]), Settings(mode="diffusion", threshold=0.4)))
    assert (ar.threshold, diffusion.threshold) == (None, 0.4)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["speed=1"], "give each of mode, threshold"),
        (["threshold=0.1", "threshold=0.2"], "once"),
        (["threshold,mode=1"], "as in threshold=0.1,0.2"),
        (["block_size"], "has no usual values"),
        (["threshold=a"], "these are no values"),
        (["threshold="], "these are no values"),
        (["mode=fast"], "the modes are"),
        (["mode=diffusion", "threshold=1.5"], "--threshold"),
        (["threshold=0.1"], "does nothing in verified: add --sweep mode=diffusion"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        each(read(words), Settings())
    assert told in caught.value.message


def test_the_option_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["eval", "humaneval", "--sweep", "mode", "--json", "x"]) == 2
    assert "--json is of one run" in capsys.readouterr().err
    assert main.main(["eval", "humaneval", "--sweep", "mode", "--transformers"]) == 2
    assert "--sweep goes with our own engine" in capsys.readouterr().err
    assert main.main(["eval", "humaneval", "--sweep", "mode=ar", "--mode", "diffusion"]) == 2
    assert "--mode and --sweep mode exclude each other" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_of_a_sweep_stand_side_by_side(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A real, tiny network, in processes of its own; what it writes is wrong, and counted."""
    try:
        sandbox.usable_backend()
    except SandboxError as error:
        pytest.skip(str(error))
    model, data, out = write_checkpoint(tmp_path / "tiny"), write_data(tmp_path / "data"), tmp_path / "out"
    words = ["--model", model, "--data", data, "--limit", 3, "--max-tokens", 8, "--dtype", "float32", "--device", "cpu"]
    sweep = ["eval", "humaneval", *map(str, words), "--out", str(out), "--sweep", "mode=ar,diffusion", "--sweep"]
    assert main.main([*sweep, "threshold=0.2,0.9"]) == 0
    told = capfd.readouterr().out
    assert "3 of 3: diffusion-threshold-0.9" in told
    line = next(line for line in told.splitlines() if line.startswith("side by side: openmercury "))
    figures = tmp_path / "f.json"
    words = line.removeprefix("side by side: openmercury ").partition(" --picture")[0].split()
    assert main.main([*words, "--json", str(figures)]) == 0
    points = json.loads(figures.read_text())["points"]
    assert {(one["system"], one["setting"], one["pass_at_1"]) for one in points} == {
        ("tiny ar", "", 0.0), ("tiny diffusion", "threshold 0.2", 0.0), ("tiny diffusion", "threshold 0.9", 0.0),
    }  # fmt: skip
    assert points[0]["tpf"] == 1.0
