"""`data show`: counts on top, what is trained on marked, and clear words for what is no shard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from openmercury.cli import data, main
from openmercury.data.shards import Example, read_shard, write_manifest, write_shard
from openmercury.text.tokenizer import Tokenizer
from tests.text import made

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"a": 0, "b": 1, "Ċ": 2, "[": 3}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(["<end>"])
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return tmp_path


@pytest.fixture
def shard(model: Path) -> Path:
    path = model / "data" / "shard.safetensors"
    examples = [
        Example([0, 0, 1, 4], 2, "chat", "Python", "MIT"),
        Example([1, 2, 1], [True, False, True], "fim", "Go", "MIT"),
        Example([0, 3], 1, "chat", "Python", "MIT"),
    ]
    write_shard(path, examples, tokenizer=Tokenizer.load(model).fingerprint)
    write_manifest(path.parent)
    return path


TOP = """\
3 examples, 9 tokens, 5 trained on (56%)
  chat                 2 examples, 6 tokens, 3 trained on (50%)
  fim                  1 examples, 3 tokens, 2 trained on (67%)
  Python               2 examples, 6 tokens, 3 trained on (50%)
  Go                   1 examples, 3 tokens, 2 trained on (67%)
  MIT                  3 examples, 9 tokens, 5 trained on (56%)
"""


def test_marks_what_is_trained_on(shard: Path, model: Path, capsys: Capture) -> None:
    for path in (shard, shard.parent):
        assert main.main(["data", "show", str(path), "--rows", "2", "--model", str(model)]) == 0
        assert capsys.readouterr().out == (
            TOP
            + "--- example 0: chat, 4 tokens, 2 trained on\naa{+b<end>+}\n"
            + "--- example 1: fim, 3 tokens, 2 trained on\n{+b+}\n{+b+}\n"
        )


def test_one_kind_only(shard: Path, model: Path, capsys: Capture) -> None:
    assert main.main(["data", "show", str(shard), "--kind", "fim", "--model", str(model)]) == 0
    assert [line[:20] for line in capsys.readouterr().out.splitlines()[6:]] == [
        "--- example 1: fim, ",
        "{+b+}",
        "{+b+}",
    ]
    assert main.main(["data", "show", str(shard), "--rows", "0"]) == 0  # needs no tokenizer
    assert capsys.readouterr().out == TOP


def test_colours_on_a_terminal(shard: Path, model: Path) -> None:
    console = Console(force_terminal=True, color_system="standard", highlight=False, _environ={})
    with console.capture() as capture:
        example = list(read_shard(shard).each())[2]
        data._print_example(2, example, Tokenizer.load(model), console)
    assert "\x1b[2ma\x1b[0m\x1b[1;32m[\x1b[0m" in capture.get()


def test_refuses_what_is_no_shard(shard: Path, model: Path, capsys: Capture) -> None:
    def told(path: Path) -> str:
        assert main.main(["data", "show", str(path), "--model", str(model)]) == 1
        return capsys.readouterr().err

    (model / "cut.safetensors").write_bytes(b"\x08")
    (model / "empty").mkdir()
    assert "is not a whole shard" in told(model / "cut.safetensors")
    assert "does not exist" in told(model / "none")
    assert "holds no shards" in told(model / "empty")
    assert "has shards and no manifest" in told(model)
    write_shard(shard, [Example([0], 0)])
    assert "has changed since its manifest was written" in told(shard.parent)
    write_shard(shard, [Example([0], 0)], tokenizer="of another")
    assert "is not the one that made these shards" in told(shard)
    assert main.main(["data", "show", str(shard), "--kind", "poem"]) == 2


def test_chats(tmp_path: Path, capsys: Capture) -> None:
    made.byte_level_core().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**made.FACTS, "chat_template": made.TEMPLATE}))
    talk = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk}) + "\n{}\n")
    line = ["data", "chats", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--model", str(tmp_path)]
    assert main.main([*line, "--contaminated"]) == 0
    assert "left out: 1 without messages" in capsys.readouterr().out
    assert main.main(["data", "show", str(tmp_path / "out"), "--model", str(tmp_path)]) == 0
    assert "<|im_start|>assistant\n{+Yes.<|im_end|>+}\n" in capsys.readouterr().out
    assert main.main(line) == 1
    assert "no folder of evaluation data is named" in capsys.readouterr().err
