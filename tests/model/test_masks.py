"""The attention rule and the training masks against a triple loop over their definition."""

from __future__ import annotations

import torch

from openmercury.diffusion.corrupt import corrupt
from openmercury.model.masks import visible
from openmercury.train.attention import build_mask, clean_visible, document_span, noisy_spans, noisy_visible


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
    rows, length = 3, 24
    generator = torch.Generator().manual_seed(1)
    document = torch.tensor([[0] * 10 + [1] * 14, [0] * 24, [0] * 5 + [1] * 12 + [-1] * 7])
    tokens = torch.randint(0, 60, (rows, length))
    size, offset = torch.tensor([4, 8, 5]), torch.tensor([1, 0, 4])
    noisy = corrupt(tokens, size, offset, torch.full((rows, 12), 0.5), 63, generator)
    span, device = document_span(document), torch.device("cpu")
    rule = noisy_visible(*noisy_spans(span, noisy.start_BL, noisy.end_BL))
    dense = build_mask(rule, rows, length, 2 * length, device)
    clean = build_mask(clean_visible(span), rows, length, length, device)
    assert isinstance(dense, torch.Tensor)
    assert isinstance(clean, torch.Tensor)
    for b in range(rows):
        starts = [p for p in range(length) if p == 0 or (p - int(offset[b])) % int(size[b]) == 0]
        for q in range(length):
            block = max(s for s in starts if s <= q)
            for k in range(length):
                same = bool(document[b, q] == document[b, k])
                k_block = max(s for s in starts if s <= k)
                assert bool(clean[b, q, k]) == (same and k <= q)
                assert bool(dense[b, q, k]) == (same and k < block), (b, q, k)
                assert bool(dense[b, q, length + k]) == (same and k_block == block)
