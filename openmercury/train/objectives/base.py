"""What every objective gives the trainer, and what several of them do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import changes
from openmercury.model.transformer import Transformer
from openmercury.train.attention import CleanAttend


class Loss(NamedTuple):
    """`sum` is differentiable; `sum` / `weight` over all ranks is what is minimised.

    Each metric is [numerator, denominator] in float64: they add up over steps and ranks, and their ratio is reported.
    Every rank and step must give the same names in the same order.
    """

    sum: Tensor
    weight: Tensor
    metrics: Mapping[str, Tensor]


class Objective(Protocol):
    """Loss of `rows` of a batch. Noise is drawn for the whole batch, so a row's is the same on whichever rank.

    `progress` = step / steps is what curricula follow; 1 when measuring.
    """

    def __call__(
        self, model: Transformer, batch: Batch, generator: torch.Generator, rows: slice, progress: float
    ) -> Loss: ...


class Clean(NamedTuple):
    """The clean half as read: its attention (with keys and values), hidden states [B, L, D], and those of each layer
    where they are wanted."""

    attend: CleanAttend
    hidden_BLD: Tensor
    states: list[Tensor]


def learnt_tokens(batch: Batch) -> Tensor:
    """Which tokens are learnt, [B, L]: those trained on, but the first of a document, which nothing predicts."""
    return batch.loss_mask_BL & ~changes(batch.document_BL)


def positions(batch: Batch) -> Tensor:
    """0, 1, … in each row, [B, L]."""
    return torch.arange(batch.tokens_BL.shape[1], device=batch.tokens_BL.device).expand_as(batch.tokens_BL)


def read_clean(model: Transformer, batch: Batch, *, gradient: bool, states: bool = False) -> Clean:
    """Run the rows causally on base weights; without `gradient` nothing of it is kept for backward."""
    attend, kept = CleanAttend(batch.document_BL), list[Tensor]()
    with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
        hidden = model(batch.tokens_BL, positions(batch), attend, None, kept if states else None)
    return Clean(attend, hidden, kept)


def base_learns(model: Transformer) -> bool:
    """Whether any weight outside the adapter is trained."""
    return any(p.requires_grad for name, p in model.named_parameters() if not name.startswith("adapter."))


def frozen_base(model: Transformer) -> Transformer:
    """A copy of the base as it is now, without adapter, that never learns."""
    adapter, model.adapter = model.adapter, None
    try:
        return copy.deepcopy(model).requires_grad_(False)
    finally:
        model.adapter = adapter


def frozen_policy(model: Transformer) -> Transformer:
    """The model as it is now, for good: a copy of what learns, and the very weights of what does not."""
    if base_learns(model):
        return copy.deepcopy(model).requires_grad_(False)
    twin = copy.copy(model)
    twin._modules = {**model._modules, "adapter": copy.deepcopy(model.adapter)}
    return twin.requires_grad_(False)


def mask_of(model: Transformer) -> int | None:
    """The mask token, if the model has one."""
    return None if model.config.diffusion is None else model.config.diffusion.mask_id


def ratio(numerator: Tensor | float, denominator: Tensor | float, like: Tensor) -> Tensor:
    """A metric of `Loss`."""
    # A number is filled in by a kernel: a copy from the host would wait for the device.
    both = (x if isinstance(x, Tensor) else torch.full((), x, device=like.device) for x in (numerator, denominator))
    return torch.stack([x.double() for x in both])


def wide_dtype(x: Tensor) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
