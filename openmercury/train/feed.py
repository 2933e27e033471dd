"""Batches of a run: drawn one ahead, without the rows that are held out for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from openmercury.data.loader import Batch, Loader
from openmercury.data.shards import Manifest, check_fit, fingerprint
from openmercury.errors import ConfigError
from openmercury.train.config import Recipe

LOOKED_AT = 50  # times as many rows are looked through for held-out ones as their share asks for


def is_held_out(ids_L: Tensor, share: float) -> bool:
    """Does a row belong to the `share` that is never trained on? Decided by its content, wherever it is met."""
    return crc32(ids_L.numpy().tobytes()) < share * 2**32


def open_loader(recipe: Recipe, batch: int, state: Mapping[str, Any] | None) -> Loader:
    """The recipe's data, which must go with its checkpoint and block sizes; `state` is one of the loader's."""
    data = recipe.data
    loader = Loader(data.sources, data.row_length, batch, recipe.seed, state)
    folder = recipe.base or recipe.tokenizer
    assert folder is not None
    tokenizer, sizes = fingerprint(folder), getattr(recipe.objective, "block_sizes", ())
    for source, manifest in zip(data.sources, loader.manifests, strict=True):
        check_fit(
            source.path,
            manifest,
            tokenizer=tokenizer,
            row_length=data.row_length,
            block_sizes=sizes,
            pairs=recipe.objective.kind == "dpo",
        )
    return loader


def trained_share(manifests: Sequence[Manifest]) -> float:
    """Tokens with a loss ÷ tokens of rows."""
    counts = [manifest.counts for manifest in manifests]
    return sum(each.trained for each in counts) / max(1, sum(each.tokens for each in counts))


def describe(loader: Loader, recipe: Recipe) -> str:
    """How much there is to train on."""
    tokens = sum(manifest.counts.tokens for manifest in loader.manifests)
    paths = ", ".join(str(source.path) for source in recipe.data.sources)
    told = f"{tokens / 1e6:.2f} M tokens from {paths}, {trained_share(loader.manifests):.0%} trained on"
    return f"{told}, {loader.cut:.1%} cut off by rows of {recipe.data.row_length}" if loader.cut else told


class Feed:
    """Endless batches on `device`. The next one is drawn while the device still works on the last.

    `state` is where the batch after the one given last begins.
    """

    def __init__(self, recipe: Recipe, device: torch.device, state: Mapping[str, Any] | None) -> None:
        self.device, self.rows = device, recipe.data.rows
        held = recipe.eval
        self.share = held.share if held is not None and held.path is None else 0.0
        self.loader = open_loader(recipe, self.rows if self.share == 0 else 1, state)
        self._ahead: Batch | None = None
        self._state = self.loader.state()

    def next(self) -> Batch:
        """The next batch."""
        batch, self._ahead = self._ahead or self._draw(), None
        self._state = self.loader.state()
        return batch

    def draw_ahead(self) -> None:
        """Draw the next batch now."""
        if self._ahead is None:
            self._ahead = self._draw()

    def state(self) -> dict[str, Any]:
        """For an exact resume."""
        return self._state

    def _draw(self) -> Batch:
        cpu = torch.device("cpu")
        if self.share == 0:
            return self._moved(self.loader.next(cpu))
        rows: list[Batch] = []
        while len(rows) < self.rows:
            row = self.loader.next(cpu)
            if not is_held_out(row.tokens_BL[0], self.share):
                rows.append(row)
        return self._moved(Batch(*(torch.cat(parts) for parts in zip(*rows, strict=True))))

    def _moved(self, batch: Batch) -> Batch:
        if self.device.type != "cuda":
            return batch
        return Batch(*(field.pin_memory().to(self.device, non_blocking=True) for field in batch))


def held_out_rows(recipe: Recipe) -> Batch:
    """The rows that `recipe.eval` measures on, on the CPU; raises ConfigError where there are too few."""
    held, cpu = recipe.eval, torch.device("cpu")
    assert held is not None
    if held.path is not None:
        other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": held.path, "mix": ()})})
        return open_loader(other, held.rows, None).next(cpu)
    loader = open_loader(recipe, 1, None)
    found: dict[int, Batch] = {}  # by content: an epoch of little data comes round
    for _ in range(round(held.rows / held.share * LOOKED_AT)):
        row = loader.next(cpu)
        if is_held_out(row.tokens_BL[0], held.share):
            found[crc32(row.tokens_BL.numpy().tobytes())] = row
        if len(found) == held.rows:
            break
    if not found:
        raise ConfigError(f"eval.share = {held.share} of the data is no row: raise it, or give eval.path")
    return Batch(*(torch.cat(parts) for parts in zip(*found.values(), strict=True)))
