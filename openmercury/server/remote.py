"""A checkpoint whose engine has a process of its own; the tokenizer, grammars and all text stay in the server's."""

from __future__ import annotations

import functools
import gc
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from openmercury.diffusion.bound import TokenOdds
from openmercury.engine.child import Child
from openmercury.engine.params import SamplingParams
from openmercury.engine.remote import RemoteEngine
from openmercury.llm import LLM, find
from openmercury.model.config import ModelConfig, read_config
from openmercury.model.device import pick_device
from openmercury.model.weights import Progress
from openmercury.server import logs
from openmercury.text.grammar import Follower, Grammars, Kind
from openmercury.text.tokenizer import Tokenizer

LogFormat = Literal["text", "json"]
Load = Callable[[Progress], LLM]


def apart(asked: bool | Literal["auto"], device: str) -> bool:
    """Shall the engine have a process of its own? "auto": on a GPU, where there are two cores for the two.

    On a CPU the forwards take all cores, and one interpreter has time enough beside them.
    """
    if asked != "auto":
        return asked
    return pick_device(device).type == "cuda" and len(os.sched_getaffinity(0)) > 1


class RemoteLLM:
    """What a server needs of an `LLM`, without its weights: those are in the process that `load` is called in.

    `load` is sent there, so it is a function of a module, or a partial one with plain arguments.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        tokenizer: Tokenizer,
        load: Load,
        *,
        progress: Progress | None = None,
        log_format: LogFormat = "json",
    ) -> None:
        self.folder, self.config, self.tokenizer = folder, config, tokenizer
        self.engine = RemoteEngine(_serve, (load, log_format), config, _source, progress)
        self.device, self.dtype = self.engine.facts["device"], self.engine.facts["dtype"]

    @classmethod
    def open(
        cls,
        model: str | Path | None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        engine_changes: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        log_format: LogFormat = "json",
    ) -> RemoteLLM:
        """As `LLM` takes and raises them."""
        folder = find(model)
        load = functools.partial(_load, str(folder), device, dtype, dict(engine_changes or {}))
        return cls(folder, read_config(folder), Tokenizer.load(folder), load, progress=progress, log_format=log_format)

    def log_likelihoods(self, ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        """See `LLM.log_likelihoods`."""
        return cast("list[float]", self.engine.call("log_likelihoods", list(ids), list(map(list, continuations))))

    def token_odds(self, ids: Sequence[int], begin: int, top: int) -> list[TokenOdds]:
        """See `LLM.token_odds`."""
        found = self.engine.call("token_odds", list(ids), begin, top)
        return [TokenOdds(log_p, [(token, each) for token, each in best]) for log_p, best in found]

    def warm_up(self, requests: int, params: SamplingParams | None = None, *, expected: bool = False) -> None:
        """See `LLM.warm_up`."""
        asked = (params or SamplingParams()).model_dump(exclude_defaults=True)
        self.engine.call("warm_up", requests, asked, expected)

    def close(self) -> None:
        """End the process."""
        self.engine.close()


def _source(constraint: Follower) -> list[Any]:
    return [*constraint.source, constraint.forced]


# --- in the engine's process -----------------------------------------------------------------------------------------


def _load(folder: str, device: str, dtype: str, changes: dict[str, Any], progress: Progress) -> LLM:
    return LLM(folder, device=device, dtype=dtype, engine_changes=changes, progress=progress)


def _serve(end: socket.socket, load: Load, log_format: LogFormat) -> None:
    child = Child(end)
    try:
        llm = load(child.progress)
        grammars = Grammars(llm.tokenizer, llm.config.eos_ids)
        grammars.follow("regex", "a")  # makes what all of them share
    except Exception as error:  # whatever it is, the parent raises it
        child.failed(error)
        return
    logs.configure(log_format)

    def make(source: Sequence[Any]) -> Follower:
        kind, grammar, forced = source
        return grammars.follow(cast("Kind", kind), grammar, forced=forced)

    def warm_up(requests: int, params: dict[str, Any], expected: bool) -> None:
        llm.warm_up(requests, SamplingParams(**params), expected=expected)

    jobs: dict[str, Callable[..., Any]] = {
        "log_likelihoods": llm.log_likelihoods,
        "token_odds": llm.token_odds,
        "warm_up": warm_up,
        "check_integrity": llm.engine.check_integrity,
    }
    gc.collect()
    gc.freeze()  # as the server does
    child.run(llm.engine, {"device": llm.device, "dtype": llm.dtype}, jobs, make)
