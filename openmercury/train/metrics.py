"""Where numbers of a run go: `metrics.jsonl` always, and any tracker that the recipe names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from openmercury.errors import ConfigError, TrainingError
from openmercury.train.config import Recipe

METRICS = "metrics.jsonl"


class Tracker(Protocol):
    """Takes the numbers of one step."""

    def log(self, step: int, row: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends one object a line. `last` is the step a resumed run stands at: what lies beyond it is dropped."""

    def __init__(self, path: Path, last: int) -> None:
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= last]
            path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Raises TrainingError where the disk refuses."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **row}) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{self.path} cannot be written ({error.strerror}): free some space, then resume"
            ) from None

    def close(self) -> None:
        """Every line is written already."""


def _step(line: str) -> int:
    """Of a line that a kill may have cut."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, recipe: Recipe) -> None:
        self.writer = _import("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(recipe.out / "tensorboard"))

    def log(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Hosted:
    """trackio and wandb, which share one interface; where they send to is decided by their own environment."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        self.module = _import(name, name)
        self.module.init(project="openmercury", name=recipe.out.name, config=recipe.model_dump(mode="json"))

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self.module.log(dict(row), step=step)

    def close(self) -> None:
        self.module.finish()


def _import(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(
            f"trackers names \"{name}\", which is not installed: pip install 'openmercury[{name}]'"
        ) from None


def open_trackers(recipe: Recipe, step: int) -> Sequence[Tracker]:
    """All trackers of a run that stands at `step`; raises ConfigError for one that is not installed."""
    found: list[Tracker] = [JsonLines(recipe.out / METRICS, step)]
    for name in recipe.trackers:
        found.append(TensorBoard(recipe) if name == "tensorboard" else Hosted(recipe, name))
    return found
