"""Slow twins: each block by itself, its clean text read again, as decoding would see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from openmercury.data.loader import Batch
from openmercury.diffusion.corrupt import Corrupted
from openmercury.model.attention import DenseAttend
from openmercury.model.masks import CLEAN, visible
from openmercury.model.transformer import Transformer
from tests import tiny


class Read(NamedTuple):
    """One block of one row: its positions, those in front that are settled, and log p [V] and layer states by row."""

    b: int
    at: list[int]
    settled: int
    log_p: dict[int, Tensor]
    states: dict[int, Tensor]


def batch_of(seed: int = 3, rows: int = 2, length: int = 30) -> Batch:
    """Two documents in row 0; prompts of several lengths, so that answers begin anywhere."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 60, (rows, length), generator=generator)
    document = torch.zeros(rows, length, dtype=torch.long)
    document[0, 12:] = 1
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[0, :5] = mask[0, 12:16] = mask[1, :9] = mask[1, 20:22] = False
    return Batch(tokens, mask, document)


def learnt(batch: Batch, b: int, p: int) -> bool:
    same = p > 0 and bool(batch.document_BL[b, p] == batch.document_BL[b, p - 1])
    return same and bool(batch.loss_mask_BL[b, p])


def causal(model: Transformer, batch: Batch, b: int) -> tuple[Tensor, Tensor]:
    """log p [L, V] and layer states [layers, L, D] of one row's clean side, each document by itself."""
    length = batch.tokens_BL.shape[1]
    at = torch.arange(length)
    same = batch.document_BL[b][:, None] == batch.document_BL[b]
    states: list[Tensor] = []
    hidden = model(batch.tokens_BL[b : b + 1], at[None], DenseAttend((same & (at <= at[:, None]))[None]), None, states)
    return model.logits(hidden)[0].log_softmax(-1), torch.cat(states)


def blocks_of(model: Transformer, batch: Batch, noisy: Corrupted) -> Iterator[Read]:
    """Every block that holds a mask."""
    for b, tokens in enumerate(batch.tokens_BL.tolist()):
        for block in sorted(set(noisy.block_BL[b].tolist())):
            at = [i for i in range(len(tokens)) if noisy.block_BL[b, i] == block]
            masked = [i for i in at if noisy.masked_BL[b, i]]
            if not masked:
                continue
            before = [i for i in range(at[0]) if batch.document_BL[b, i] == batch.document_BL[b, at[0]]]
            clean = before + [i for i in at if i < masked[0]]
            order = before + at
            position = torch.tensor([order])
            group = torch.tensor([[CLEAN if i in clean else 0 for i in order]])
            end = torch.where(group == CLEAN, position + 1, masked[0])
            ids = torch.tensor([[tiny.MASK if i in masked else int(noisy.ids_BL[b, i]) for i in order]])
            for i in before:
                ids[0, order.index(i)] = tokens[i]
            states: list[Tensor] = []
            hidden = model(ids, position, DenseAttend(visible(end, group, position, group)), group >= 0, states)
            log_p = model.logits(hidden)[0].log_softmax(-1)
            rows = {i: n for n, i in enumerate(order)}
            found = torch.cat(states)
            yield Read(b, at, masked[0] - at[0], {i: log_p[rows[i]] for i in at}, {i: found[:, rows[i]] for i in at})
