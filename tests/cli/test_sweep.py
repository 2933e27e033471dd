"""`--sweep`: which runs it makes."""

from __future__ import annotations

import pytest

from openmercury.cli.errors import UsageProblem
from openmercury.cli.options import Settings
from openmercury.cli.sweep import USUAL, each, read


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
