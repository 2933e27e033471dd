"""Shards come back as they were written, whole or not at all, and only with what made them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmercury.data.shards import (
    KINDS,
    Counts,
    Example,
    check_fit,
    fingerprint,
    pad,
    read_manifest,
    read_shard,
    read_shards,
    write_manifest,
    write_shard,
)  # fmt: skip
from openmercury.errors import ConfigError, DataError
from openmercury.text.tokenizer import Tokenizer
from tests.text import made


@st.composite
def example(draw: st.DrawFn) -> Example:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20))
    flags = st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))
    loss = draw(st.one_of(st.integers(0, len(ids)), flags))
    return Example(ids, loss, draw(st.sampled_from(KINDS)), draw(st.sampled_from(["Python", "Go"])), "MIT")


@given(st.lists(st.lists(example(), max_size=8), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_round_trip(shards: list[list[Example]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, examples in enumerate(shards):
            write_shard(folder / f"{number}.safetensors", examples, tokenizer="t")
        manifest = write_manifest(folder, {"seed": 1})
        assert read_manifest(folder) == manifest
        every = [one for examples in shards for one in examples]
        found = list(read_shards(folder).each())
        assert [(one.ids, one.loss, one.kind) for one in found] == [
            (one.ids, one.flags().tolist(), one.kind) for one in every
        ]
        assert manifest.counts == sum((count(one) for one in every), Counts())
        for key in {one.language for one in every}:
            assert manifest.languages[key] == sum((count(one) for one in every if one.language == key), Counts())
        assert sum(manifest.kinds.values(), Counts()) == manifest.counts
        assert [(shard.examples, shard.tokens) for shard in manifest.shards] == [
            (len(examples), sum(len(one.ids) for one in examples)) for examples in shards
        ]


def count(one: Example) -> Counts:
    return Counts(examples=1, tokens=len(one.ids), trained=int(one.flags().sum()))


def test_the_same_examples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        examples = [Example([1, 2], 1, "fim", "Go", "MIT"), Example([3], 0, "code", "Python", "BSD")]
        write_shard(tmp_path / name, examples, tokenizer="t")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        write_shard(folder / f"{name}.safetensors", [Example([1, 2, 3], 1)], tokenizer="t")
    write_manifest(folder)
    return folder


def test_broken_and_foreign_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no shards"):
        read_shards(tmp_path)
    with pytest.raises(DataError, match="holds no shards"):
        write_manifest(tmp_path)
    whole = folder_of(tmp_path / "whole", "a", "b")
    shard = whole / "a.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(DataError, match="changed since its manifest"):
        read_shards(whole)
    with pytest.raises(DataError, match="not a whole shard"):
        read_shard(shard)
    with pytest.raises(DataError, match="not a whole shard"):
        write_manifest(whole)
    shard.write_bytes(data)
    write_shard(whole / "c.safetensors", [Example([1], 0)], tokenizer="other")
    with pytest.raises(DataError, match=r"c.safetensors is not in the manifest"):
        read_shards(whole)
    with pytest.raises(DataError, match=r"c.safetensors was made with another tokenizer"):
        write_manifest(whole)
    (whole / "c.safetensors").unlink()
    shard.unlink()
    with pytest.raises(DataError, match=r"a.safetensors is missing"):
        read_shards(whole)
    (whole / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="no manifest of this version"):
        read_manifest(whole)
    (whole / "manifest.json").unlink()
    with pytest.raises(DataError, match="has shards and no manifest"):
        read_manifest(whole)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(path, [Example([1], 0)])
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        write_shard(path, [Example([2, 3], 0)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_padding(tmp_path: Path) -> None:
    padded = pad(Example([5, 6, 7], 1, "chat", "Go"), 4, 0)
    assert padded == Example([5, 6, 7, 0], [False, True, True, False], "chat", "Go")
    assert pad(padded, 4, 0) == padded
    assert write_shard(tmp_path / "a.safetensors", [padded], block_size=4).block_size == 4
    with pytest.raises(AssertionError, match="pad the examples"):
        write_shard(tmp_path / "a.safetensors", [Example([1], 0)], block_size=4)


def test_a_run_must_fit_its_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.safetensors", [Example([1] * 32, 0)], tokenizer="t", block_size=32)
    manifest = write_manifest(tmp_path)
    check_fit(tmp_path, manifest, tokenizer="t", row_length=1024, block_sizes=(8, 16, 32))
    with pytest.raises(ConfigError, match="another tokenizer"):
        check_fit(tmp_path, manifest, tokenizer="u", row_length=1024)
    with pytest.raises(ConfigError, match="row_length 1000 is no multiple of 32"):
        check_fit(tmp_path, manifest, tokenizer="t", row_length=1000)
    with pytest.raises(ConfigError, match="block size 12 does not divide 32"):
        check_fit(tmp_path, manifest, tokenizer="t", row_length=1024, block_sizes=(8, 12))


def test_a_fingerprint_is_of_what_ids_mean(tmp_path: Path) -> None:
    one, other = made.byte_level(), made.byte_level(chat_template="another")
    assert one.fingerprint == other.fingerprint != made.sentencepiece().fingerprint
    core = made.byte_level_core()
    core.save(str(tmp_path / "tokenizer.json"))
    assert fingerprint(tmp_path) == one.fingerprint
    core.add_tokens(["<more>"])
    assert Tokenizer(core, {}).fingerprint != one.fingerprint
    assert fingerprint(tmp_path / "none") is None
