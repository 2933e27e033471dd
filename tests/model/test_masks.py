"""The attention rule and the training masks against a triple loop over their definition."""

from __future__ import annotations

import torch

from openmercury.diffusion.corrupt import corrupt, cut_blocks
from openmercury.model.masks import visible
from openmercury.train.attention import (
    causal_spans,
    dense_mask,
    document_span,
    noisy_spans,
)


def test_rule() -> None:
    position = torch.tensor([[0, 1, 2, 2, 3, 1, 2]])
    group = torch.tensor([[-1, -1, -1, 0, 0, 1, 1]])
    end = torch.tensor([[1, 2, 3, 2, 2, 1, 1]])
    mask = visible(end, group, position, group)[0]
    for q in range(7):
        for k in range(7):
            clean = group[0, k] == -1 and position[0, k] < end[0, q]
            same = group[0, q] >= 0 and group[0, q] == group[0, k]
            assert bool(mask[q, k]) == bool(clean or same), (q, k)


def test_training_masks() -> None:
    """Against the definition, position by position: blocks, their settled beginnings, documents, the whole document."""
    length = 24
    document = torch.tensor([[0] * 10 + [1] * 14, [0] * 24, [0] * 5 + [1] * 12 + [-1] * 7])
    learnt = torch.rand(3, length, generator=torch.Generator().manual_seed(2)) < 0.8
    blocks = cut_blocks(document, learnt, torch.tensor([4, 8, 5]), torch.tensor([1, 0, 4]))
    masked = torch.rand(3, length, generator=torch.Generator().manual_seed(1)) < 0.5
    noisy = corrupt(torch.zeros_like(document), masked, learnt, torch.ones(3, length), blocks, 63)
    span = document_span(document)
    found = {
        "noisy": dense_mask(*noisy_spans(span, noisy)),
        "clean": dense_mask(causal_spans(span)[0]),
        "document": dense_mask(span),
    }
    for b in range(3):
        block = noisy.block_BL[b].tolist()
        settled = [
            not any(noisy.masked_BL[b, p] for p in range(length) if block[p] == block[q] and p <= q)
            for q in range(length)
        ]
        for q in range(length):
            start = block.index(block[q])
            for k in range(length):
                same = bool(document[b, q] == document[b, k])
                inside = block[k] == block[q] and (k <= q if settled[q] else True)
                assert bool(found["clean"][b, q, k]) == (same and k <= q)
                assert bool(found["document"][b, q, k]) == same
                assert bool(found["noisy"][b, q, k]) == (same and k < start), (b, q, k)
                assert bool(found["noisy"][b, q, length + k]) == inside, (b, q, k)
