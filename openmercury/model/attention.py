"""Implementations of `Attend`: dense over a given mask, and over a KV cache of clean text.

Grouped heads are folded into the query axis (H/G queries a KV head), so keys and values are never repeated in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.model.config import ModelConfig
from openmercury.model.masks import CLEAN, NOBODY, visible


def grouped_attention(query_BNHE: Tensor, key_BTGE: Tensor, value_BTGE: Tensor, mask_BNT: Tensor) -> Tensor:
    """Softmax attention with grouped KV heads under a boolean mask; returns [B, N, H, E]."""
    b, n, h, e = query_BNHE.shape
    g = key_BTGE.shape[2]
    query = query_BNHE.view(b, n, g, h // g, e).permute(0, 2, 3, 1, 4).reshape(b, g, (h // g) * n, e)
    mask = mask_BNT[:, None, None].expand(b, 1, h // g, n, -1).reshape(b, 1, (h // g) * n, -1)
    out = F.scaled_dot_product_attention(
        query, key_BTGE.transpose(1, 2), value_BTGE.transpose(1, 2), mask.expand(b, g, -1, -1)
    )
    return out.view(b, g, h // g, n, e).permute(0, 3, 1, 2, 4).reshape(b, n, h, e)


class DenseAttend:
    """All tokens of the forward are keys; `mask_BNN` says who sees whom. The slow, plain twin of every other."""

    def __init__(self, mask_BNN: Tensor) -> None:
        self.mask_BNN = mask_BNN

    def __call__(self, layer: int, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        return grouped_attention(query_BNHE, key_BNGE, value_BNGE, self.mask_BNN)


class KVCache:
    """Keys and values of clean text, one row a request: slot s holds position s.

    Behind the longest row of a forward lies scratch space for that forward's noisy tokens; the last slot takes the
    writes of padding. Slots at or beyond a query's `end` are never visible, so stale content needs no clearing.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device):
        shape = (config.n_layers, rows, capacity + 1, config.n_kv_heads, config.head_size)
        self.key = torch.zeros(shape, dtype=dtype, device=device)
        self.value = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        """Slots a row can use for clean text and scratch together."""
        return self.key.shape[2] - 1

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (finished requests leave the batch)."""
        self.key, self.value = self.key[:, rows], self.value[:, rows]

    def grow(self, capacity: int) -> None:
        """Enlarge to `capacity` slots a row, keeping what is stored."""
        if capacity <= self.capacity:
            return
        for name in ("key", "value"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros((*old.shape[:2], capacity + 1, *old.shape[3:]))
            new[:, :, : old.shape[2] - 1] = old[:, :, :-1]
            setattr(self, name, new)


class CachedAttend:
    """One forward over a `KVCache`: clean tokens are stored at their position, noisy ones in scratch, then all attend.

    `end_RN`, `group_RN`, `position_RN` follow the rule of `masks`; `padding_RN` marks positions that are only filler.
    `used` is one more than the highest clean position any row holds after this forward.
    """

    def __init__(
        self, cache: KVCache, position_RN: Tensor, end_RN: Tensor, group_RN: Tensor, padding_RN: Tensor, used: int
    ) -> None:
        rows, n = position_RN.shape
        noisy = group_RN >= 0
        # Noisy token i takes scratch slot used + i; without noisy tokens no scratch is read.
        self.span = used + (n if bool(noisy.any()) else 0)
        assert self.span <= cache.capacity, "the caller grows the cache before the forward"
        scratch = torch.arange(used, used + n, device=position_RN.device).expand(rows, n)
        slot = torch.where(noisy, scratch, position_RN)
        self.cache = cache
        self.slot_RN = torch.where(padding_RN, cache.capacity, slot)
        self.row_R1 = torch.arange(rows, device=position_RN.device)[:, None]
        key_position = torch.arange(self.span, device=position_RN.device).expand(rows, -1)
        key_group = torch.full_like(key_position, CLEAN)
        if self.span > used:
            key_group = key_group.clone()
            key_group[:, used:] = torch.where(noisy, group_RN, NOBODY)
        self.mask_RNT = visible(end_RN, group_RN, key_position, key_group)

    def __call__(self, layer: int, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        key, value = self.cache.key[layer], self.cache.value[layer]
        key[self.row_R1, self.slot_RN] = key_BNGE
        value[self.row_R1, self.slot_RN] = value_BNGE
        return grouped_attention(query_BNHE, key[:, : self.span], value[:, : self.span], self.mask_RNT)
