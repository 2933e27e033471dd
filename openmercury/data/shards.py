"""Example shards: token rows of any length in one safetensors file, with the part of each that is trained on.

A shard holds `ids` (all examples end to end), `length` [examples] and `prompt` [examples], the number of leading tokens
that carry no loss. Files are written under a temporary name and renamed: a shard is whole or absent.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from openmercury.errors import DataError


class Example(NamedTuple):
    """Token ids, of which the first `prompt` carry no loss."""

    ids: Sequence[int]
    prompt: int


class Examples(NamedTuple):
    """Many examples end to end: `ids` int32 [tokens], `length` and `prompt` int32 [examples]."""

    ids: np.ndarray
    length: np.ndarray
    prompt: np.ndarray

    @property
    def start(self) -> np.ndarray:
        """Offset of each example in `ids`."""
        return np.concatenate(([0], np.cumsum(self.length, dtype=np.int64)[:-1]))


def write_shard(path: Path, examples: Sequence[Example]) -> None:
    """Write a shard atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    arrays = {
        "ids": np.concatenate([np.asarray(one.ids, dtype=np.int32) for one in examples]),
        "length": np.array([len(one.ids) for one in examples], dtype=np.int32),
        "prompt": np.array([one.prompt for one in examples], dtype=np.int32),
    }
    save_file(arrays, temporary)
    os.replace(temporary, path)


def read_shards(folder: Path) -> Examples:
    """All shards of a folder in order of name; raises DataError when there are none or one is broken."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise DataError(f"{folder} holds no shards: make some with `openmercury data generate`")
    parts = []
    for path in paths:
        try:
            arrays = load_file(path)
            parts.append(Examples(arrays["ids"], arrays["length"], arrays["prompt"]))
        except (SafetensorError, KeyError) as error:
            raise DataError(f"{path} is not a whole shard ({error}): delete it and make it again") from None
    return Examples(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
