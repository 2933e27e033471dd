"""Systems ask the same and read the same: `transformers` on the same weights writes our answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openmercury.engine.params import SamplingParams
from openmercury.errors import CheckpointError, ConfigError
from openmercury.eval.systems import Answer, Ask, Ours, Sampling, Transformers, fingerprint, seed_of
from openmercury.eval.tasks.base import Chat, Continue, Fill
from openmercury.llm import LLM
from tests.eval.made import write_checkpoint

ASKS = [
    Ask(Chat("def f(x):\n    return x"), 12, 0),
    Ask(Continue("class A:\n"), 12, 0),
    Ask(Fill("def f(x):\n", "\nf(1)"), 9, 0),
    Ask(Continue("the user"), 5, 0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder, device="cpu", dtype="float32")


def all_of(system: Any, asks: list[Ask], sampling: Sampling | None = None) -> list[Answer]:
    system.warm_up(len(asks), sampling or Sampling())
    found = dict(system.answer(asks, sampling or Sampling()))
    return [found[number] for number in range(len(asks))]


def ours(llm: LLM, mode: Any = "ar", concurrency: int = 2) -> Ours:
    return Ours(llm, SamplingParams(mode=mode), concurrency=concurrency)


def told(answers: list[Answer]) -> list[tuple[Any, ...]]:
    return [(one.text, one.finish_reason, one.token_ids) for one in answers]


def with_stops(llm: LLM) -> list[Ask]:
    """Raw text to go on with, each to end at characters from the middle of what is written without them."""
    free = [Ask(Continue(text), 16, 0) for text in ("class A:\n", "the user", "x + 1", "def f(x):")]
    asks = []
    for ask, answer in zip(free, all_of(ours(llm), free), strict=True):
        middle = answer.text[len(answer.text) // 2 :][:2]
        if middle:
            asks.append(ask._replace(prompt=Continue(ask.prompt.text, (middle, "never"))))  # type: ignore[union-attr]
    assert len(asks) > 1
    return asks


def test_every_mode_and_concurrency_answers_alike(llm: LLM) -> None:
    alone = all_of(ours(llm, concurrency=1), ASKS)
    assert [one.completion_tokens for one in alone] == [len(one.token_ids or ()) for one in alone]
    assert told(all_of(ours(llm, concurrency=4), ASKS)) == told(alone)
    verified = all_of(ours(llm, "verified"), ASKS)
    assert told(verified) == told(alone)
    assert all(one.forwards for one in verified)
    begun = [one.seconds for one in all_of(ours(llm, concurrency=1), ASKS)]
    assert all(seconds > 0 for seconds in begun)


def test_tokens_end_where_a_stop_string_does(llm: LLM) -> None:
    asks = with_stops(llm)
    alone = all_of(ours(llm), asks)
    for ask, one in zip(asks, alone, strict=True):
        assert one.finish_reason == "stop"
        assert ask.prompt.stop[0] not in one.text  # type: ignore[union-attr]
    # Whatever a forward of `verified` accepts behind the stop string is no part of the answer.
    assert told(all_of(ours(llm, "verified"), asks)) == told(alone)


def test_transformers_write_the_same(llm: LLM, folder: Path) -> None:
    pytest.importorskip("transformers")
    asks = [*ASKS, *with_stops(llm)]
    expected = told(all_of(ours(llm), asks))
    for batch in (1, 3):
        plain = Transformers(folder, device="cpu", dtype="float32", concurrency=batch)
        found = all_of(plain, asks)
        assert told(found) == expected
        assert all(one.forwards == one.completion_tokens for one in found)
        assert plain.identity["batch"] == batch


def test_transformers_draw_by_their_seed(folder: Path) -> None:
    pytest.importorskip("transformers")
    plain, hot = Transformers(folder, device="cpu", dtype="auto"), Sampling(temperature=1.5)
    first, again, other = (all_of(plain, [ASKS[1]._replace(seed=seed)], hot)[0].token_ids for seed in (1, 1, 2))
    assert first == again != other


def test_transformers_refuse_our_own_format(folder: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="int8 is of our engine alone"):
        Transformers(folder, device="cpu", dtype="int8")


def test_transformers_cannot_load_everything(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        Transformers(tmp_path, device="cpu", dtype="float32")


def test_what_cannot_be_asked_is_an_error_of_its_own(llm: LLM) -> None:
    asks = [Ask(Continue("x" * 5000), 4, 0), Ask(Chat(" "), 4, 0), Ask(Fill("", ""), 4, 0), ASKS[3]]
    long, silent, gap, good = all_of(ours(llm), asks)
    assert (long.finish_reason, good.error) == ("error", None)
    assert "context holds 2048" in (long.error or "")
    assert "empty" in (silent.error or "")
    assert "both empty" in (gap.error or "")


def test_the_fingerprint_is_of_what_decides_answers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert fingerprint(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert fingerprint(tmp_path) != before
    with pytest.raises(CheckpointError, match="no model folder"):
        fingerprint(tmp_path / "nowhere")


def test_identity_holds_what_decides_answers(llm: LLM) -> None:
    params = SamplingParams(mode="diffusion", threshold=0.3)
    known = Ours(llm, params).identity
    assert (known["mode"], known["threshold"], known["dtype"], known["device"]) == ("diffusion", 0.3, "float32", "cpu")
    assert known["weights"] == fingerprint(llm.folder)


def test_seeds_differ_and_fit_every_server() -> None:
    seeds = {seed_of(0, problem, index) for problem in ("a", "b") for index in range(50)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(1, "a", 0) != seed_of(0, "a", 0) == seed_of(0, "a", 0)
