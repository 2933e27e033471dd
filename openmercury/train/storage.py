"""Where DCP writes and reads: one safetensors file a rank and one JSON index. Nothing is pickled, nothing unpickled.

DCP's own file format keeps its index, and what each tensor is, as pickles; only its planning is used here: which rank
writes which part of what, and which stored parts make up what a rank of a later run, of another size, asks for.

    step-00000100/  rank-00000.safetensors … index.json       index: dtype, size and parts of each tensor
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

INDEX = "index.json"
DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float64, torch.bfloat16, torch.int64)
}


def write_json(path: Path, value: Any) -> None:
    """Write, and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Writer(StorageWriter):
    """Writes `folder`; `whole` is called by one rank once every rank's file and the index are on the disk."""

    def __init__(self, folder: Path, rank: int, whole: Callable[[], None]) -> None:
        self.folder, self.rank, self.whole = folder, rank, whole

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        path = self.folder / f"rank-{self.rank:05d}.safetensors"
        tensors, results = {}, []
        for number, item in enumerate(plan.items):
            value = planner.resolve_data(item)
            assert isinstance(value, torch.Tensor), item.index.fqn
            key = f"{item.index.fqn}#{number}"
            tensors[key] = value.detach().cpu().contiguous()
            size = list(tensors[key].shape)
            offset = list(item.index.offset or [0] * len(size))
            part = {"offset": offset, "size": size, "file": path.name, "key": key}
            results.append(WriteResult(index=item.index, size_in_bytes=tensors[key].nbytes, storage_data=part))
        save_file(tensors, path)
        sync(path)
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        index: dict[str, Any] = {}
        for name, facts in metadata.state_dict_metadata.items():
            assert isinstance(facts, TensorStorageMetadata)
            dtype = str(facts.properties.dtype).removeprefix("torch.")
            index[name] = {"dtype": dtype, "size": list(facts.size), "parts": []}
        for result in (each for of_rank in results for each in of_rank):
            index[result.index.fqn]["parts"].append(result.storage_data)
        write_json(self.folder / INDEX, index)
        sync(self.folder)
        self.whole()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class Reader(StorageReader):
    """Reads what `Writer` wrote, whoever of how many ranks asks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.parts = {(n, tuple(part["offset"])): part for n, facts in self.index.items() for part in facts["parts"]}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A reader is of one folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        found: dict[str, Any] = {}
        for name, facts in self.index.items():
            chunks = [
                ChunkStorageMetadata(torch.Size(part["offset"]), torch.Size(part["size"])) for part in facts["parts"]
            ]
            properties = TensorProperties(dtype=DTYPES[facts["dtype"]])
            found[name] = TensorStorageMetadata(properties, torch.Size(facts["size"]), chunks)
        return Metadata(found)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Everything is known already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def _part(self, index: MetadataIndex) -> dict[str, Any]:
        size = self.index[index.fqn]["size"]
        part: dict[str, Any] = self.parts[index.fqn, tuple(index.offset or [0] * len(size))]
        return part

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        files: dict[str, Any] = {}
        for item in plan.items:
            part = self._part(item.storage_index)
            if part["file"] not in files:
                files[part["file"]] = safe_open(str(self.folder / part["file"]), framework="pt")
            ends = zip(item.storage_offsets, item.lengths, strict=True)
            window = tuple(slice(begin, begin + length) for begin, length in ends)
            tensor = (
                files[part["file"]].get_slice(part["key"])[window]
                if window
                else files[part["file"]].get_tensor(part["key"])
            )
            target = planner.resolve_tensor(item).detach()
            target.copy_(tensor)
            planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True
