"""Is what stands far back still found? A needle test on token ids, for contexts that were stretched.

A row of `length` tokens is filled with text. At some depth a needle is planted: a few random ids as a key, then others
as its value. The row ends with the key once more, and the clean side must name the value, token by token:

    text … [key value] … text … [key value]        asked: the rows before the last value's tokens

Copying what was read once is the least a context must do (passkey retrieval: arXiv 2305.16300); ids need no tokenizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openmercury.data.loader import Batch
from openmercury.model.transformer import Transformer
from openmercury.train.objectives.base import read_clean

KEY, VALUE = 8, 8  # tokens
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def plant(filler: Tensor, length: int, depth: float, generator: torch.Generator) -> Tensor:
    """A row of `length` ids: text from `filler` [F], repeated as needed, with a needle at `depth` and its key again."""
    if length < 3 * (KEY + VALUE):
        raise ValueError(f"a row of {length} tokens has no room for a needle")
    text = filler.repeat(-(-length // len(filler)))[: length - 2 * (KEY + VALUE)]
    picked = torch.randint(len(filler), (KEY + VALUE,), generator=generator)
    needle = filler[picked]  # ids that occur, in an order that does not
    at = round(depth * len(text))
    return torch.cat((text[:at], needle, text[at:], needle))


@torch.no_grad()
def find_needles(model: Transformer, filler: Tensor, length: int, seed: int) -> float:
    """Share of the value's tokens that are named right, over all depths; `filler` are ids on the CPU."""
    generator, device = torch.Generator().manual_seed(seed), model.embedding.weight.device
    right = 0
    for depth in DEPTHS:
        row = plant(filler, length, depth, generator)[None].to(device)
        batch = Batch(row, torch.ones_like(row, dtype=torch.bool), torch.zeros_like(row))
        hidden = read_clean(model, batch, gradient=False).hidden_BLD[0, -VALUE - 1 : -1]
        right += int((model.logits(hidden).argmax(-1) == row[0, -VALUE:]).sum())
    return right / (VALUE * len(DEPTHS))
