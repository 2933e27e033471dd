"""Bits per byte: exact ones sum log-softmax, windows count every token once, and errors are what the spread says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openmercury.cli import main
from openmercury.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from openmercury.eval.likelihood import (
    Bound,
    Document,
    Loaded,
    Score,
    exact,
    load,
    measure,
    prefix_id,
    read_documents,
    summarise,
    windows,
)
from openmercury.model.attention import DenseAttend
from openmercury.model.transformer import Transformer
from tests import tiny as tiny_networks
from tests.eval.made import write_checkpoint
from tests.text import made

TEXT = "def f(x):\n    return x + 1\n\nfor i in range(9):\n    print(f(i), 'été')\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Loaded:
    return load(folder, device="cpu", dtype="float64")


def plain_nats(network: Transformer, ids: list[int], first: int) -> float:
    n = len(ids)
    mask = torch.ones(1, n, n, dtype=torch.bool).tril()
    log_p = network.logits(network(torch.tensor([ids]), torch.arange(n)[None], DenseAttend(mask))[0]).log_softmax(-1)
    return -sum(float(log_p[i - 1, ids[i]]) for i in range(first, n))


# --- one text --------------------------------------------------------------------------------------------------------


def test_exact_is_the_sum_of_log_softmax(tiny: Loaded) -> None:
    ids = [prefix_id(tiny.tokenizer), *tiny.tokenizer.encode(TEXT)]
    (score,) = measure(tiny, [Document("a", TEXT)])
    assert score.nats == pytest.approx((plain_nats(tiny.model, ids, 1),))
    assert (score.tokens, score.bytes) == (len(ids) - 1, len(TEXT.encode()))
    assert summarise([score]).bits_per_byte == pytest.approx(score.nats[0] / math.log(2) / len(TEXT.encode()))


def test_texts_read_together_and_alone(tiny: Loaded) -> None:
    texts = [([5, 9, 17, 20], 2), ([7, 8], 1), ([1, 2, 3, 4, 5, 6, 7], 4)]
    together = exact(tiny.model, texts)
    for (ids, first), (nats, greedy) in zip(texts, together, strict=True):
        assert nats == pytest.approx(plain_nats(tiny.model, ids, first))
        assert not greedy
    best = [9, 4]
    for _ in range(3):  # what the network itself would write is greedy, and another last token is not
        best.append(next(t for t in range(500) if exact(tiny.model, [([*best, t], len(best))])[0][1]))
    assert exact(tiny.model, [(best, 2)])[0][1]
    assert not exact(tiny.model, [([*best[:-1], (best[-1] + 1) % 500], 2)])[0][1]


@pytest.mark.parametrize(("length", "context", "stride"), [(2, 4, 4), (5, 4, 4), (12, 4, 4), (23, 8, 3), (40, 7, 1)])
def test_windows_predict_every_token_once(length: int, context: int, stride: int) -> None:
    found = list(windows(length, context, stride))
    assert [t for _, first, end in found for t in range(first, end)] == list(range(1, length))
    for begin, first, end in found:
        assert 0 <= begin < first < end <= length
        assert end - 1 - begin <= context
    for begin, first, _ in found[1:]:
        assert first - begin >= min(context - stride, first) + 1


def test_windows_of_a_long_text(tiny: Loaded) -> None:
    ids = [prefix_id(tiny.tokenizer), *tiny.tokenizer.encode(TEXT)]
    (score,) = measure(tiny, [Document("a", TEXT)], None, 16)
    expected = sum(
        plain_nats(tiny.model, ids[begin:end], first - begin) for begin, first, end in windows(len(ids), 16, 8)
    )
    assert score.nats == pytest.approx((expected,))


def test_bound_of_blocks_of_one_is_exact_in_windows_too(tiny: Loaded) -> None:
    document = [Document("a", TEXT)]
    for context in (16, 2048):
        (bounded,) = measure(tiny, document, Bound(1, 2), context)
        (plain,) = measure(tiny, document, None, context)
        assert bounded.nats == pytest.approx(plain.nats * 2)


def test_bound_is_repeatable_and_converges(tiny: Loaded) -> None:
    document = [Document("a", TEXT[:40])]
    few, again = (measure(tiny, document, Bound(4, 8, seed=1)) for _ in range(2))
    assert few == again
    assert few != measure(tiny, document, Bound(4, 8, seed=2))
    many = summarise(measure(tiny, document, Bound(4, 400)))
    one = summarise(few)
    assert one.standard_error is not None
    assert many.standard_error is not None
    assert many.standard_error < one.standard_error / 4
    assert abs(one.bits_per_byte - many.bits_per_byte) < 4 * one.standard_error


def test_refuses_what_does_not_fit(tiny: Loaded) -> None:
    document = [Document("a", TEXT)]
    with pytest.raises(ConfigError, match="more than the 2048"):
        measure(tiny, document, None, 4096)
    with pytest.raises(ConfigError, match="blocks of 64"):
        measure(tiny, document, Bound(64), 32)
    with pytest.raises(UnsupportedError, match="use mode ar"):
        measure(
            replace(tiny, model=tiny_networks.network(of=tiny_networks.config(adapter=False))), document, Bound(4), 32
        )
    with pytest.raises(CheckpointError, match="set eos_token"):
        prefix_id(made.byte_level(bos_token=None, eos_token=None))


def test_summary() -> None:
    found = summarise([Score("a", 10, 40, (10.0, 14.0)), Score("b", 20, 60, (30.0, 30.0))])
    bit = math.log(2)
    assert found.bits_per_byte == pytest.approx(42 / 100 / bit)
    assert found.bits_per_token == pytest.approx(42 / 30 / bit)
    assert found.standard_error == pytest.approx(math.sqrt(8 / 2) / 100 / bit)
    assert found.document_error == pytest.approx(math.sqrt(2 * 2 * 4.8**2) / 100 / bit)
    alone = summarise([Score("a", 10, 40, (10.0,))])
    assert alone.standard_error is None
    assert alone.document_error is None


# --- files and the command -------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    texts = tmp_path / "texts"
    (texts / "sub").mkdir(parents=True)
    (texts / ".git").mkdir()
    (texts / "b.py").write_text("b = 2\n")
    (texts / "sub" / "a.py").write_text("a = 1\n")
    (texts / "c.txt").write_text("ccc\n")
    (texts / "empty.py").write_text("")
    (texts / "raw.py").write_bytes(b"\xff\xfe\x00")
    (texts / ".git" / "hidden.py").write_text("h = 0\n")
    return texts


def test_documents(texts: Path) -> None:
    found, skipped = read_documents([texts, texts / "c.txt"], "*.py")
    assert [Path(each.name).name for each in found] == ["b.py", "a.py", "c.txt"]
    assert skipped == {"empty": 1, "not UTF-8": 1}
    assert [Path(each.name).name for each in read_documents([texts], limit=1)[0]] == ["b.py"]
    with pytest.raises(DataError, match="1 not UTF-8"):
        read_documents([texts / "raw.py"])
    with pytest.raises(DataError, match="no file or folder"):
        read_documents([texts / "gone"])


def test_command(texts: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["likelihood", str(texts), "--model", str(folder), "--device", "cpu"]
    assert main.main([*line, "--mode", "diffusion", "--samples", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = measure(load(folder, device="cpu"), read_documents([texts])[0], Bound(4, 3))
    assert told["bits_per_byte"] == pytest.approx(summarise(expected).bits_per_byte)
    assert told["bound"] == {"block_size": 4, "samples": 3, "seed": 0}
    assert told["skipped"] == {"empty": 1, "not UTF-8": 1}
    assert [file["bytes"] for file in told["files"]] == [6, 4, 6]
    assert main.main(line) == 0
    out = capsys.readouterr().out
    assert "bits per byte" in out
    assert "skipped         1 empty, 1 not UTF-8" in out


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--samples", "2"], 2, "--samples only acts with --mode diffusion"),
        (["--dtype", "int8"], 2, "int8"),
        (["--model", "gone"], 1, "there is no model folder gone"),
    ],
)
def test_wrong_usage(texts: Path, options: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["likelihood", str(texts), *options]) == code
    assert told in capsys.readouterr().err
