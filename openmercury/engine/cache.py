"""The paged KV cache of clean text, and attention over it.

Slot s of page p holds one token's keys and values of every layer. A request's page table gives the page of each run of
`page_size` positions. Noisy tokens are never stored: they live for one forward and are seen by their group only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from openmercury.engine.modes import ForwardBatch
from openmercury.engine.pages import EMPTY
from openmercury.model.attention import grouped_attention
from openmercury.model.config import ModelConfig
from openmercury.model.masks import CLEAN, NOBODY, visible


class PagedCache:
    """Keys and values, each [layers, pages · page size, G, E]. Page 0 takes writes of padding."""

    def __init__(self, config: ModelConfig, pages: int, page_size: int, *, dtype: torch.dtype, device: torch.device):
        self.page_size = page_size
        shape = (config.n_layers, pages * page_size, config.n_kv_heads, config.head_size)
        self.key, self.value = (_zeros(shape, dtype, device) for _ in range(2))

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """Memory of one slot over all layers."""
        return 2 * config.n_layers * config.n_kv_heads * config.head_size * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU from calloc, so that pages never used take no memory."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


def slots_of(batch: ForwardBatch, pages_RP: Tensor, page_size: int) -> Tensor:
    """Cache slot of each position of a forward, [R, Q]; noisy and padding positions go to page 0."""
    page = pages_RP.gather(1, (batch.position_RQ // page_size).clamp(max=pages_RP.shape[1] - 1)).long()
    slot = page * page_size + batch.position_RQ % page_size
    return torch.where(batch.group_RQ == CLEAN, slot, EMPTY)


class GatherAttend:
    """`Attend` by gathering each row's pages: for CPUs, and the plain twin of the kernel.

    `used` is one more than the highest clean position of any row after this forward. What no token of a row sees
    is never read, and nothing is written to page 0: 0 · NaN is NaN, so one broken request would spoil the others.
    """

    def __init__(self, cache: PagedCache, batch: ForwardBatch, pages_RP: Tensor, used: int, *, noisy: bool) -> None:
        rows, device = len(batch.ids_RQ), batch.ids_RQ.device
        self.cache, self.noisy = cache, noisy
        clean_RQ = batch.group_RQ == CLEAN
        self.grouped_RQ11 = (batch.group_RQ >= 0)[..., None, None]
        self.slot_C = slots_of(batch, pages_RP, cache.page_size)[clean_RQ]
        self.clean_C = clean_RQ.flatten().nonzero()[:, 0]
        position_RT = torch.arange(used, device=device).expand(rows, -1)
        page_RT = pages_RP[:, : -(-used // cache.page_size)].long().repeat_interleave(cache.page_size, dim=1)[:, :used]
        slot_RT = page_RT * cache.page_size + position_RT % cache.page_size
        group_RT = torch.full_like(position_RT, CLEAN)
        if noisy:
            own = torch.where(batch.group_RQ >= 0, batch.group_RQ, NOBODY)
            position_RT = torch.cat((position_RT, batch.position_RQ), dim=1)
            group_RT = torch.cat((group_RT, own), dim=1)
        self.mask_RQT = visible(batch.end_RQ, batch.group_RQ, position_RT, group_RT)
        self.slot_RT = torch.where(self.mask_RQT.any(1)[:, :used], slot_RT, EMPTY)
        # A padding position sees the first key, so that its softmax is a number; nobody reads the result.
        self.mask_RQT[..., 0] |= ~self.mask_RQT.any(-1)

    def __call__(self, layer: int, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        both = []
        for stored, new in ((self.cache.key[layer], key_BNGE), (self.cache.value[layer], value_BNGE)):
            stored[self.slot_C] = new.flatten(0, 1)[self.clean_C]
            # A fifth of the time of stored[slot_RT].
            kept = stored.index_select(0, self.slot_RT.flatten()).unflatten(0, self.slot_RT.shape)
            both.append(torch.cat((kept, new.where(self.grouped_RQ11, 0.0)), dim=1) if self.noisy else kept)
        return grouped_attention(query_BNHE, both[0], both[1], self.mask_RQT)
