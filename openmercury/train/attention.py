"""`Attend` for training: the clean half records its keys and values, the noisy half reads them under the rule.

Both have a dense form (CPU, tests) and a FlexAttention form (CUDA); a test holds the masks to their definition.
Rows hold several documents; nobody sees across a document border.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from openmercury.diffusion.corrupt import Corrupted
from openmercury.model.attention import grouped_attention

Mask = Tensor | BlockMask


def clean_visible(document_BL: Tensor) -> Any:
    """mask_mod of the clean half: causal within a document."""

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (document_BL[b, q] == document_BL[b, k])

    return rule


def noisy_visible(document_BL: Tensor, start_BL: Tensor, block_BL: Tensor) -> Any:
    """mask_mod of the noisy half over keys [clean ‖ noisy]: clean text before the block, and the block itself."""
    length = document_BL.shape[1]

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        at = k % length
        same_document = document_BL[b, q] == document_BL[b, at]
        before = (k < length) & (at < start_BL[b, q])
        together = (k >= length) & (block_BL[b, at] == block_BL[b, q])
        return same_document & (before | together)

    return rule


def build_mask(rule: Any, rows: int, queries: int, keys: int, device: torch.device) -> Mask:
    """A FlexAttention block mask on CUDA, a dense boolean [B, Q, K] elsewhere."""
    if device.type == "cuda":
        return cast(BlockMask, _compiled_block_mask()(rule, rows, None, queries, keys, device=device))
    b, q, k = (torch.arange(n, device=device) for n in (rows, queries, keys))
    return cast(Tensor, rule(b[:, None, None], None, q[None, :, None], k[None, None, :]))


# FlexAttention is a fused kernel only when compiled; one compilation serves the process.
@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


@cache
def _compiled_block_mask() -> Any:
    return torch.compile(create_block_mask, dynamic=False)


def _attend(query_BQHE: Tensor, key_BKGE: Tensor, value_BKGE: Tensor, mask: Mask) -> Tensor:
    if isinstance(mask, Tensor):
        return grouped_attention(query_BQHE, key_BKGE, value_BKGE, mask)
    query, key, value = (x.transpose(1, 2) for x in (query_BQHE, key_BKGE, value_BKGE))
    out = _compiled_flex()(query, key, value, block_mask=mask, enable_gqa=True)
    return cast(Tensor, out.transpose(1, 2))


class CleanAttend:
    """Attention of the clean half; keeps every layer's keys and values for the noisy half."""

    def __init__(self, document_BL: Tensor) -> None:
        rows, length = document_BL.shape
        self.mask = build_mask(clean_visible(document_BL), rows, length, length, document_BL.device)
        self.stored: list[tuple[Tensor, Tensor]] = []

    def __call__(self, layer: int, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        self.stored.append((key_BNGE, value_BNGE))
        return _attend(query_BNHE, key_BNGE, value_BNGE, self.mask)


class NoisyAttend:
    """Attention of the noisy half over the stored clean keys and its own."""

    def __init__(self, clean: CleanAttend, corrupted: Corrupted, document_BL: Tensor) -> None:
        rows, length = document_BL.shape
        rule = noisy_visible(document_BL, corrupted.start_BL, corrupted.block_BL)
        self.mask = build_mask(rule, rows, length, 2 * length, document_BL.device)
        self.stored = clean.stored

    def __call__(self, layer: int, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        clean_key, clean_value = self.stored[layer]
        key = torch.cat((clean_key, key_BNGE), dim=1)
        value = torch.cat((clean_value, value_BNGE), dim=1)
        return _attend(query_BNHE, key, value, self.mask)
