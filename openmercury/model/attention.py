"""Attention over a given mask; the cached forms are in `engine.cache` and `engine.kernels`.

Grouped heads are folded into the query axis (H/G queries a KV head), so keys and values are never repeated in memory.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


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
