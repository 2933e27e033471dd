"""Checkpoints of a run: what learns, the optimiser's moments, the average and the counters, resumed to the bit.

    out/states/step-00000500.partial/   being written, in the background, while training goes on
    out/states/step-00000500/           whole: renamed when every rank's file, index and counters are on the disk

A run killed at any moment resumes from the newest whole folder. What is partial is deleted at the next start, old ones
after a new one is whole. A base that does not learn is not part of a checkpoint: it is read from its own folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from openmercury.errors import TrainingError
from openmercury.train.parallel import World
from openmercury.train.storage import Reader, Writer, sync, write_json

STATES, COUNTERS = "states", "counters.json"
ALONE = "torch.distributed is disabled"  # DCP warns of it, and a run of one process is no mistake
NAME = re.compile(r"step-(\d+)$")


def states(out: Path) -> list[Path]:
    """The whole states of a run, oldest first."""
    found = (path for path in (out / STATES).glob("step-*") if NAME.search(path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def find_state(out: Path) -> Path | None:
    """The newest whole state of a run, if any."""
    return next(reversed(states(out)), None)


def read_counters(state: Path) -> dict[str, Any]:
    """What a state says of itself; raises TrainingError where it is broken."""
    try:
        counters: dict[str, Any] = json.loads((state / COUNTERS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(state, error) from None
    return counters


def _broken(state: Path, error: object) -> TrainingError:
    return TrainingError(f"{state} cannot be read ({error}): delete it, and the run resumes from the one before it")


def read_state(state: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Fill `tensors` in place, sharded or whole, whatever the number of ranks that wrote them."""
    alone = world.size == 1
    try:
        reader = Reader(state)
        missing = [name for name in tensors if name not in reader.index]
        wrong = [n for n in tensors if n not in missing and list(tensors[n].shape) != reader.index[n]["size"]]
        if missing or wrong:
            name = [*missing, *wrong][0]
            raise TrainingError(
                f"{state} was written by another recipe (rank, model, what learns or ema): {name} differs; "
                "use its recipe, or a new `out`"
            )
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=ALONE)
            load(dict(tensors), storage_reader=reader, planner=planner, no_dist=alone, process_group=world.saving)
    except (SafetensorError, OSError, KeyError, ValueError, CheckpointException) as error:
        raise _broken(state, str(error).splitlines()[0]) from None


class Checkpointer:
    """Writes the states of one run in the background, one at a time; errors are raised by the next call."""

    def __init__(self, out: Path, world: World, keep: int) -> None:
        self.folder, self.world, self.keep = out / STATES, world, keep
        self.writing: Any = None
        warnings.filterwarnings("ignore", message=ALONE)
        if world.main:
            for path in self.folder.glob("*.partial"):
                shutil.rmtree(path)
        world.barrier()  # before any rank writes into a folder of that name

    def save(self, step: int, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Copy the tensors to memory now, and write them while training goes on."""
        self.wait()
        final = self.folder / f"step-{step:08d}"
        if final.exists():
            return
        partial = final.with_name(f"{final.name}.partial")

        def whole() -> None:
            write_json(partial / COUNTERS, dict(counters))
            sync(partial)
            os.replace(partial, final)
            sync(self.folder)
            for old in states(self.folder.parent)[: -self.keep]:
                shutil.rmtree(old)

        try:
            self.writing = async_save(
                dict(tensors),
                storage_writer=Writer(partial, self.world.rank, whole),
                planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=self.world.saving,
                no_dist=self.world.size == 1,
            )
        except (OSError, CheckpointException) as error:
            raise self._failed(error) from None

    def wait(self) -> None:
        """Until what is being written is whole."""
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        future: Future[Any] = writing if isinstance(writing, Future) else writing.upload_completion
        try:
            future.result()
        except (OSError, SafetensorError, CheckpointException, RuntimeError) as error:
            raise self._failed(error) from None

    def _failed(self, error: BaseException) -> TrainingError:
        kept = find_state(self.folder.parent)
        told = "there is none" if kept is None else kept.name
        causes = " ".join(str(error).split())
        return TrainingError(
            f"the state could not be written to {self.folder} ({causes[-200:]}): free some space, then start the same "
            f"command again; the last whole state: {told}"
        )
