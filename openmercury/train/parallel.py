"""Parallelism from outside the model: replicas, or weights that are sharded (FSDP2).

`torchrun --nproc-per-node N -m openmercury train RECIPE` starts the processes, on one host or many.

- What learns is small (an adapter): every process holds all of it and takes its rows of each batch; one all-reduce a
  step adds up what they found. Nothing is gathered in between, which is why it is the fastest way.
- Weights that learn, or a frozen base that does not fit (`shard = true`): each process holds 1/N of every layer, and
  `fully_shard` gathers a layer while it runs. An adapter stays replicated beside it.

N processes train what one would, up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from openmercury.errors import ConfigError
from openmercury.model.device import pick_device
from openmercury.model.transformer import Transformer


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees it. A world of one, the default, communicates nothing.

    `saving` is a group of its own for what is written in the background beside the steps.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    saving: Any = None

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
            return cls(rank, size, picked, dist.new_group(backend="gloo"))
        if picked.index is not None:
            raise ConfigError(f'device "{device}" is one GPU for {size} processes: write device = "cuda"')
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"{size} processes need a GPU each: torchrun --nproc-per-node {torch.cuda.device_count()}"
            )
        picked = torch.device("cuda", local)
        torch.cuda.set_device(picked)
        dist.init_process_group("nccl", rank=rank, world_size=size, device_id=picked)
        return cls(rank, size, picked, dist.new_group(backend="gloo"))

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, rows: int, forward_rows: int | None = None) -> list[slice]:
        """This rank's rows of a batch of `rows`, at most `forward_rows` at a time.

        Raises ConfigError where they do not divide evenly: parts differ in shape then, and ranks in number of parts.
        """
        if rows % self.size:
            raise ConfigError(f"data.rows = {rows} does not divide by {self.size} processes: make it a multiple")
        each = rows // self.size
        step = min(each, forward_rows or each)
        if each % step:
            raise ConfigError(
                f"{each} rows of a process do not divide into forwards of {step}: make data.rows a multiple of "
                f"data.forward_rows × {self.size}"
            )
        return [slice(begin, begin + step) for begin in range(self.rank * each, (self.rank + 1) * each, step)]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the ranks: one all-reduce of one buffer, in the widest of their dtypes."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            _unflatten(flat, tensors)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of rank 0."""
        if self.size > 1 and tensors:
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


def shard(model: Transformer, world: World, compute: torch.dtype) -> None:
    """Split every layer, and embedding, head and last norm together, over the ranks; the adapter stays whole.

    Weights are gathered in the dtype of computation and gradients are added up in float32 at least. FSDP averages over
    ranks: whoever reads the gradients multiplies.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=compute, reduce_dtype=torch.promote_types(compute, torch.float32), cast_forward_inputs=False
    )
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    whole = set() if model.adapter is None else set(model.adapter.parameters())
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=whole)
    if model.adapter is not None:
        model.adapter.to(world.device)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that may be sharded: memory, not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Does each rank hold a part of it?"""
    return isinstance(tensor, DTensor)
