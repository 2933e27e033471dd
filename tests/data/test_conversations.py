"""Files of conversations: what is kept is trained on, what is left out is counted."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from openmercury.data import conversations
from openmercury.data.config import ExampleRecipe
from openmercury.data.conversations import write_conversations
from openmercury.data.decontaminate import BenchmarkIndex, Item
from openmercury.data.shards import read_shards
from openmercury.errors import DataError
from tests.server.made import TEMPLATE
from tests.text import made

TOKENIZER = made.byte_level(chat_template=TEMPLATE)
RECIPE = ExampleRecipe()
SECRET = "Write a function that tells whether the brackets of any given text are balanced and nested as they should be."
BENCHMARKS = BenchmarkIndex.of([Item("someeval", SECRET, SECRET)])


def row(asked: str, answer: str, **more: str) -> str:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **more})


LINES = [
    row("Hello?", "Yes.", language="python", licence="MIT"),
    row(SECRET, "No."),
    row("Long?", "word " * 5000),
    '{"messages": [{"role": "poet", "content": ""}, {"role": "assistant", "content": "a"}]}',
    '{"messages": "none"}',
    '{"messages": [{"role": "user", "content": "a"}, 1]}',
    '{"messages": [{"role": "user", "content": "a"}], "tools": 5}',
    "[]",
    "{",
    "",
    row("More?", "No."),
]


@pytest.mark.parametrize(("name", "open_"), [("a.jsonl", open), ("a.jsonl.gz", gzip.open), ("a.jsonl.xz", lzma.open)])
def test_rows_are_kept_or_counted(tmp_path: Path, name: str, open_: type[open]) -> None:  # type: ignore[valid-type]
    with open_(tmp_path / name, "wt", encoding="utf-8") as stream:  # type: ignore[misc]
        stream.write("\n".join(LINES))
    manifest, drops = write_conversations([tmp_path / name], tmp_path / "out", RECIPE, TOKENIZER, BENCHMARKS)
    assert +drops == {
        "near someeval": 1, "without an answer that fits": 1, "malformed": 1, "without messages": 3,
        "no JSON object": 1, "no JSON": 1,
    }  # fmt: skip
    assert manifest.counts.examples == 2
    assert manifest.languages["python"].examples == manifest.licences["MIT"].examples == 1
    texts = [TOKENIZER.decode(one.ids) for one in read_shards(tmp_path / "out").each()]
    assert ["Yes." in texts[0], "More?" in texts[1]] == [True, True]
    with pytest.raises(DataError, match="holds shards already"):
        write_conversations([tmp_path / name], tmp_path / "out", RECIPE, TOKENIZER, None)


def test_a_run_that_was_stopped_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "SHARD", 2)
    (tmp_path / "a.jsonl").write_text("\n".join(row(f"{i}?", "Yes.") for i in range(5)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "chat-00009.safetensors").write_bytes(b"of a run that was stopped")
    manifest, _ = write_conversations([tmp_path / "a.jsonl"], tmp_path / "out", RECIPE, TOKENIZER, None)
    assert [(shard.name, shard.examples) for shard in manifest.shards] == [
        (f"chat-{number:05d}.safetensors", size) for number, size in enumerate((2, 2, 1))
    ]


def test_bad_files(tmp_path: Path) -> None:
    empty, cut = tmp_path / "empty.jsonl", tmp_path / "cut.jsonl.xz"
    empty.write_text("{")
    cut.write_bytes(lzma.compress(b"x" * 1000)[:-9])
    damaged = tmp_path / "damaged.jsonl.gz"
    whole = bytearray(gzip.compress(row("?", "!").encode() * 99))
    whole[20:30] = b"\xff" * 10
    damaged.write_bytes(whole)
    for path, told in (
        (damaged, "cannot be read"),
        (tmp_path / "none", "cannot be read"),
        (cut, "cannot be read"),
        (empty, "1 no JSON"),
    ):
        with pytest.raises(DataError, match=told):
            write_conversations([path], tmp_path / "out", RECIPE, TOKENIZER, None)


def test_a_folder_of_weights_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(row("?", "Yes."))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
        with pytest.raises(DataError, match=rf"holds {name}, which was not made by this command"):
            write_conversations([tmp_path / "a.jsonl"], tmp_path, RECIPE, TOKENIZER, None)
        assert (tmp_path / name).read_bytes() == b"weights"
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "answer",
    [{"content": "Yes."}, {"role": ["assistant"], "content": "Yes."}, {"role": "assistant", "content": 1},
     {"role": "assistant", "content": None, "tool_calls": 1},
     {"role": "assistant", "content": "Yes.", "tool_calls": [1]}],
)  # fmt: skip
def test_malformed_answers_are_counted(tmp_path: Path, answer: dict[str, object]) -> None:
    again = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    bad = json.dumps({"messages": [again[0], answer, *again]})
    (tmp_path / "a.jsonl").write_text(bad + "\n" + row("?", "Yes.") + "\n")
    _, drops = write_conversations([tmp_path / "a.jsonl"], tmp_path / "out", RECIPE, TOKENIZER, None)
    assert +drops == {"malformed": 1}
