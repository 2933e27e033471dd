"""Data parallelism from outside the model: every process holds the whole model and takes its rows of each batch.

`torchrun --nproc-per-node N -m openmercury train RECIPE` starts the processes. A step adds up what they found in one
all-reduce, so N processes train what one would, up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from openmercury.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees it. A world of one, the default, communicates nothing."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def start(cls, device: str) -> World:
        """Join the processes that torchrun announces in RANK, WORLD_SIZE and LOCAL_RANK; alone where it does not.

        Raises ConfigError where a process would have no GPU of its own.
        """
        picked, size = pick_device(device), int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(device=picked)
        rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        if picked.type != "cuda":
            dist.init_process_group("gloo", rank=rank, world_size=size)
            return cls(rank, size, picked)
        if picked.index is not None:
            raise ConfigError(f'device "{device}" is one GPU for {size} processes: write device = "cuda"')
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"{size} processes need a GPU each: torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        picked = torch.device("cuda", local)
        torch.cuda.set_device(picked)
        dist.init_process_group("nccl", rank=rank, world_size=size, device_id=picked)
        return cls(rank, size, picked)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This rank's rows of a batch of `rows`; raises ConfigError where they do not divide evenly."""
        if rows % self.size:
            raise ConfigError(f"data.rows = {rows} does not divide by {self.size} processes: make it a multiple")
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the ranks: one all-reduce of one buffer, in the widest of their dtypes."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            _unflatten(flat, tensors)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of rank 0."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.broadcast(flat, src=0)
            _unflatten(flat, tensors)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the other processes."""
        if self.size > 1:
            dist.destroy_process_group()


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
