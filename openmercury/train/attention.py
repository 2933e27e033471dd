"""`Attend` for training: the clean half records its keys and values, the noisy half reads them under the rule.

What a position sees are ranges: of its document, of the clean text before its block, of its block. On CUDA they are
handed to a kernel (`train/kernels.py`), elsewhere they become a dense mask; tests hold both to the definition.
Rows hold several documents; nobody sees across a document border. Noisy positions that teach nothing are left out.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from openmercury.diffusion.corrupt import Corrupted
from openmercury.model.attention import grouped_attention
from openmercury.model.transformer import LayerAttend


class Span(NamedTuple):
    """Positions `first` ≤ p < `end`, for each position of a batch: [B, L] each, counted in its own row."""

    first: Tensor
    end: Tensor

    def at(self, place: Tensor) -> Span:
        """Of the flat `place`s alone, counted through the flattened batch."""
        length = self.first.shape[1]
        return Span(*(field.flatten()[place] + place // length * length for field in self))


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


def causal_spans(document: Span) -> tuple[Span, Span]:
    """What each position of the clean half sees, and which positions see it: a document up to here, and from here."""
    at_BL = torch.arange(document.first.shape[1], device=document.first.device).expand_as(document.first)
    return Span(document.first, at_BL + 1), Span(at_BL, document.end)


def noisy_spans(document: Span, noisy: Corrupted) -> tuple[Span, Span]:
    """The clean and the noisy range that each position sees: the text before its block, and the block.

    What is settled at the beginning of a block is causal, as committed text is.
    """
    at_L = torch.arange(noisy.start_BL.shape[1], device=noisy.start_BL.device)
    end_BL = torch.where(noisy.settled_BL, at_L + 1, noisy.end_BL)
    return Span(document.first, noisy.start_BL), Span(noisy.start_BL, end_BL)


def dense_mask(*parts: Span) -> Tensor:
    """[B, L, parts · L]: what each position sees of so many times L keys side by side."""
    key_L = torch.arange(parts[0].first.shape[1], device=parts[0].first.device)
    return torch.cat([(key_L >= part.first[..., None]) & (key_L < part.end[..., None]) for part in parts], dim=-1)


class Sight(NamedTuple):
    """Who sees whom, for `range_attention`: in a flattened batch, or of its clean keys and the chosen noisy ones."""

    seen_4Q: Tensor
    seers_2K: Tensor


def row_sight(seen: Span, seers: Span) -> Sight:
    """Of whole rows among themselves."""
    place = torch.arange(seen.first.numel(), device=seen.first.device)
    nothing = torch.zeros_like(place)
    return Sight(_pack(*seen.at(place), nothing, nothing), _pack(*seers.at(place)))


def noisy_sight(document: Span, noisy: Corrupted, at_T: Tensor) -> Sight:
    """Of the noisy positions at flat places `at_T`, in order; a place's number among them is found by bisection."""
    before, together = (part.at(at_T) for part in noisy_spans(document, noisy))
    place = torch.arange(document.first.numel(), device=at_T.device)
    block = Span(noisy.start_BL, noisy.end_BL).at(at_T)
    first, end, block_first, block_end, behind, done = (
        torch.searchsorted(at_T, x) for x in (*together, *block, place + 1, document.at(place).end)
    )
    seen = _pack(*before, len(place) + first, len(place) + end)
    return Sight(seen, _pack(torch.cat((behind, block_first)), torch.cat((done, block_end))))


def _pack(*fields: Tensor) -> Tensor:
    return torch.stack(fields).int()


class DenseRows:
    """Attention among the positions of whole rows, by a mask: query [B, L, H, E], key and value [B, L, G, E]."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        return grouped_attention(query_BNHE, key_BNGE, value_BNGE, self.mask)


class RangeRows:
    """The same by ranges."""

    def __init__(self, sight: Sight) -> None:
        self.sight = sight

    def __call__(self, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        query, key, value = (x.flatten(0, 1) for x in (query_BNHE, key_BNGE, value_BNGE))
        return _ranges(query, key, value, self.sight, 0).view_as(query_BNHE)


def _rows(seen: Span, seers: Span) -> LayerAttend:
    return RangeRows(row_sight(seen, seers)) if seen.first.is_cuda else DenseRows(dense_mask(seen))


class CleanAttend:
    """Attention of the clean half; `stored` are the keys and values [B, L, G, E] of the layers that have run."""

    def __init__(self, document_BL: Tensor) -> None:
        self.document = document_span(document_BL)
        self.layer = _rows(*causal_spans(self.document))
        self.stored: list[tuple[Tensor, Tensor]] = []

    def at(self, layer: int) -> LayerAttend:
        """See `StagedAttend`."""
        return self.layer

    def keep(self, layer: int, key_BNGE: Tensor, value_BNGE: Tensor) -> None:
        """See `StagedAttend`."""
        self.stored.append((key_BNGE, value_BNGE))


class DocumentAttend:
    """Attention in both directions within a document; nothing is kept."""

    def __init__(self, document_BL: Tensor) -> None:
        document = document_span(document_BL)
        self.layer = _rows(document, document)

    def at(self, layer: int) -> LayerAttend:
        """See `StagedAttend`."""
        return self.layer

    def keep(self, layer: int, key_BNGE: Tensor, value_BNGE: Tensor) -> None:
        """Nobody reads them."""


class NoisyAttend:
    """Attention of the noisy half over the stored clean keys and its own.

    The forward holds T chosen noisy positions as one row; `at_T` are their places in the flattened batch, in order.
    """

    def __init__(self, clean: CleanAttend, noisy: Corrupted, at_T: Tensor) -> None:
        self.stored, self.at_T = clean.stored, at_T
        if at_T.is_cuda:
            self.sight = noisy_sight(clean.document, noisy, at_T)
        else:
            self.mask = _noisy_mask(clean.document, noisy, at_T)

    def at(self, layer: int) -> LayerAttend:
        """See `StagedAttend`."""
        key, value = self.stored[layer]
        if self.at_T.is_cuda:
            return RangeNoisy(key, value, self.sight)
        return DenseNoisy(key, value, self.mask, self.at_T)

    def keep(self, layer: int, key_BNGE: Tensor, value_BNGE: Tensor) -> None:
        """Nobody reads them."""


def _noisy_mask(document: Span, noisy: Corrupted, at_T: Tensor) -> Tensor:
    """[B, L, 2L] over keys [clean ‖ noisy]; a position that was not chosen sees itself alone: no row may be empty.

    Of a block that is cut the chosen see the others, too, which are zeros; nothing is asked of them (`Chosen.whole_T`).
    """
    rows, length = document.first.shape
    before, together = noisy_spans(document, noisy)
    place = torch.arange(length, device=at_T.device).expand(rows, length)
    chosen = torch.zeros_like(noisy.masked_BL)
    chosen.view(-1)[at_T] = True
    before = Span(before.first, torch.where(chosen, before.end, 0))
    return dense_mask(before, Span(*(torch.where(chosen, own, place + i) for i, own in enumerate(together))))


class DenseNoisy:
    """One layer's attention of the noisy half: query [1, T, H, E], key and value [1, T, G, E] → [1, T, H, E]."""

    def __init__(self, clean_key: Tensor, clean_value: Tensor, mask: Tensor, at_T: Tensor) -> None:
        self.clean_key, self.clean_value, self.mask, self.at_T = clean_key, clean_value, mask, at_T

    def _spread(self, x_1THE: Tensor) -> Tensor:
        """To their places in rows [B, L, …], zeros elsewhere."""
        rows, length = self.clean_key.shape[:2]
        places = x_1THE.new_zeros(rows * length, *x_1THE.shape[2:])
        return cast(Tensor, places.index_copy(0, self.at_T, x_1THE[0]).unflatten(0, (rows, length)))

    def __call__(self, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        key = torch.cat((self.clean_key, self._spread(key_BNGE)), dim=1)
        value = torch.cat((self.clean_value, self._spread(value_BNGE)), dim=1)
        out_BLHE = grouped_attention(self._spread(query_BNHE), key, value, self.mask)
        return out_BLHE.flatten(0, 1)[self.at_T][None]


class RangeNoisy:
    """The same by ranges: nothing is spread over rows, and clean keys that need no gradient get none."""

    def __init__(self, clean_key: Tensor, clean_value: Tensor, sight: Sight) -> None:
        self.clean_key, self.clean_value, self.sight = clean_key, clean_value, sight

    def __call__(self, query_BNHE: Tensor, key_BNGE: Tensor, value_BNGE: Tensor) -> Tensor:
        clean_key, clean_value = self.clean_key.flatten(0, 1), self.clean_value.flatten(0, 1)
        key, value = torch.cat((clean_key, key_BNGE[0])), torch.cat((clean_value, value_BNGE[0]))
        skip = 0 if self.clean_key.requires_grad else len(clean_key)
        return _ranges(query_BNHE[0], key, value, self.sight, skip)[None]


def _ranges(query_QHE: Tensor, key_KGE: Tensor, value_KGE: Tensor, sight: Sight, skip: int) -> Tensor:
    from openmercury.train.kernels import range_attention  # Triton is at hand where there is CUDA

    return range_attention(query_QHE, key_KGE, value_KGE, *sight, skip)
