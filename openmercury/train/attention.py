"""`Attend` for training: the clean half records its keys and values, the noisy half reads them under the rule.

Both have a dense form (CPU, tests) and a FlexAttention form (CUDA); a test holds the masks to their definition.
Rows hold several documents; nobody sees across a document border. Noisy positions that teach nothing are left out.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from openmercury.diffusion.corrupt import Corrupted
from openmercury.model.attention import grouped_attention

Mask = Tensor | BlockMask


class Span(NamedTuple):
    """Positions `first` ≤ p < `end` of its own row, for each position of a batch, [B, L] each."""

    first: Tensor
    end: Tensor

    def short(self) -> Span:
        """In 32 bits: a kernel compares them with every key, in 64 bits at twice the cost."""
        return Span(self.first.int(), self.end.int())


def document_span(document_BL: Tensor) -> Span:
    """The run of equal document numbers around each position."""
    length = document_BL.shape[1]
    at_L = torch.arange(length, device=document_BL.device)
    edge_BL = torch.ones_like(document_BL, dtype=torch.bool)
    edge_BL[:, 1:] = document_BL[:, 1:] != document_BL[:, :-1]
    first_BL = torch.where(edge_BL, at_L, 0).cummax(1).values
    last_edge = F.pad(edge_BL[:, 1:], (0, 1), value=True)
    end_BL = torch.where(last_edge, at_L + 1, length).flip(1).cummin(1).values.flip(1)
    return Span(first_BL, end_BL)


# What a query sees are ranges, and their ends are numbers of the query alone: a kernel that evaluates the rule loads
# nothing for a key.
def clean_visible(document: Span) -> Any:
    """mask_mod of the clean half: causal within a document."""
    first_BL = document.first.int()

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (k >= first_BL[b, q])

    return rule


def noisy_visible(before: Span, together: Span) -> Any:
    """mask_mod of the noisy half over keys [clean ‖ noisy]: clean text before the block, and the block itself."""
    length = before.first.shape[1]
    clean, noisy = before.short(), Span(together.first + length, together.end + length).short()

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((k >= clean.first[b, q]) & (k < clean.end[b, q])) | ((k >= noisy.first[b, q]) & (k < noisy.end[b, q]))

    return rule


def noisy_spans(document: Span, noisy: Corrupted) -> tuple[Span, Span]:
    """The clean and the noisy range that each position sees: the text before its block, and the block.

    What is settled at the beginning of a block is causal, as committed text is.
    """
    at_L = torch.arange(noisy.start_BL.shape[1], device=noisy.start_BL.device)
    end_BL = torch.where(noisy.settled_BL, at_L + 1, noisy.end_BL)
    return Span(document.first, noisy.start_BL), Span(noisy.start_BL, end_BL)


def document_visible(document: Span) -> Any:
    """mask_mod of masked diffusion: everything in one's document."""
    seen = document.short()

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= seen.first[b, q]) & (k < seen.end[b, q])

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
    flex = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    out = flex(query, key, value, block_mask=mask, enable_gqa=True)
    return cast(Tensor, out.transpose(1, 2))


class RowAttend:
    """Attention of one layer within rows, under a mask."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask

    def __call__(self, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        return _attend(query_BNHE, key_BNGE, value_BNGE, self.mask)


class CleanAttend:
    """Attention of the clean half; `stored` are the keys and values [B, L, G, E] of the layers that have run."""

    def __init__(self, document_BL: Tensor) -> None:
        rows, length = document_BL.shape
        self.document = document_span(document_BL)
        self.mask = build_mask(clean_visible(self.document), rows, length, length, document_BL.device)
        self.stored: list[tuple[Tensor, Tensor]] = []

    def at(self, layer: int) -> RowAttend:
        """See `StagedAttend`."""
        return RowAttend(self.mask)

    def keep(self, layer: int, key_BNGE: Tensor, value_BNGE: Tensor) -> None:
        """See `StagedAttend`."""
        self.stored.append((key_BNGE, value_BNGE))


def _spread(x_T: Tensor, at_T: Tensor, places: int) -> Tensor:
    """Rows [T, …] to places `at_T` of a zero [places, …]."""
    return x_T.new_zeros(places, *x_T.shape[1:]).index_copy(0, at_T, x_T)


class _Collect(torch.autograd.Function):
    """The rows at places `at_T`, which are distinct, so the way back is a plain copy, where autograd would add.

    Nothing is written in place: PyTorch 2.11 compiles a function whose result was, and drops its gradient in silence.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, at_T: Tensor) -> Tensor:
        ctx.save_for_backward(at_T)
        ctx.places = len(x)
        return x.index_select(0, at_T)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        at_T = ctx.saved_tensors[0]
        return _spread(grads[0], at_T, ctx.places), None


class NoisyAttend:
    """Attention of the noisy half over the stored clean keys and its own.

    The forward holds T chosen noisy positions as one row; `at_T` are their places in the flattened batch. Positions
    that were not chosen see themselves alone and nobody sees them.
    """

    def __init__(self, clean: CleanAttend, noisy: Corrupted, at_T: Tensor) -> None:
        rows, length = noisy.ids_BL.shape
        before, together = noisy_spans(clean.document, noisy)
        place = torch.arange(rows * length, device=at_T.device).view(rows, length) % length
        chosen_BL = torch.zeros_like(place, dtype=torch.bool)
        chosen_BL.view(-1)[at_T] = True
        before = Span(before.first, torch.where(chosen_BL, before.end, 0))
        together = Span(*(torch.where(chosen_BL, own, place + i) for i, own in enumerate(together)))
        self.mask = build_mask(noisy_visible(before, together), rows, length, 2 * length, at_T.device)
        self.stored, self.at_T = clean.stored, at_T

    def at(self, layer: int) -> NoisyLayer:
        """See `StagedAttend`."""
        return NoisyLayer(*self.stored[layer], self.mask, self.at_T)

    def keep(self, layer: int, key_BNGE: Tensor, value_BNGE: Tensor) -> None:
        """Nobody reads them."""


class NoisyLayer:
    """One layer's attention of the noisy half: query [1, T, H, E], key and value [1, T, G, E] → [1, T, H, E]."""

    def __init__(self, clean_key: Tensor, clean_value: Tensor, mask: Mask, at_T: Tensor) -> None:
        self.clean_key, self.clean_value, self.mask, self.at_T = clean_key, clean_value, mask, at_T

    def _spread(self, x_1THE: Tensor) -> Tensor:
        rows, length = self.clean_key.shape[:2]
        return _spread(x_1THE[0], self.at_T, rows * length).view(rows, length, *x_1THE.shape[2:])

    def __call__(self, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        key = torch.cat((self.clean_key, self._spread(key_BNGE)), dim=1)
        value = torch.cat((self.clean_value, self._spread(value_BNGE)), dim=1)
        out_BLHE = _attend(self._spread(query_BNHE), key, value, self.mask)
        return cast(Tensor, _Collect.apply(out_BLHE.flatten(0, 1), self.at_T))[None]  # type: ignore[no-untyped-call]


class DocumentAttend:
    """Attention in both directions within a document; nothing is kept."""

    def __init__(self, document_BL: Tensor) -> None:
        rows, length = document_BL.shape
        rule = document_visible(document_span(document_BL))
        self.mask = build_mask(rule, rows, length, length, document_BL.device)

    def at(self, layer: int) -> RowAttend:
        """See `StagedAttend`."""
        return RowAttend(self.mask)

    def keep(self, layer: int, key_BNGE: Tensor, value_BNGE: Tensor) -> None:
        """Nobody reads them."""
