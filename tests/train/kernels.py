"""Checks of the training kernels against dense attention: `python -m tests.train.kernels`, compiled where there is a
GPU, interpreted with TRITON_INTERPRET=1 elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from openmercury.model.attention import grouped_attention
from openmercury.train import attention, kernels
from openmercury.train.attention import RangeNoisy, RangeRows, Sight, causal_spans, document_span, row_sight
from tests.engine.kernels import DEVICE, let_numpy_2_4_index
from tests.train.test_attention import dense, dense_sight, noisy_batch


def slopes(out: Tensor, way: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((out * way).sum(), inputs))


def compare(found: Tensor, plain: Tensor, inputs: list[Tensor], bound: float, name: str) -> None:
    """Values and gradients, by norm."""
    way = torch.randn_like(plain)
    pairs = [(found, plain), *zip(slopes(found, way, inputs), slopes(plain, way, inputs), strict=True)]
    for number, (one, other) in enumerate(pairs):
        assert (one - other).norm() <= bound * other.norm(), (name, number, (one - other).norm())


def random(rows: tuple[int, ...], heads: int, groups: int, size: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A leaf, and query, key and value as a layer has them: value cut out of its product, the others out of a copy."""
    leaf = torch.randn(*rows, heads + 2 * groups, size, device=DEVICE).to(dtype).requires_grad_()
    turned, value = leaf.split((heads + groups, groups), dim=-2)
    return leaf, *turned.clone().split((heads, groups), dim=-2), value


def documents(rows: int, length: int) -> Tensor:
    """Of 1 to three quarters of a row."""
    draw = torch.Generator().manual_seed(3)
    ends = torch.randint(1, 3 * length // 4, (rows, length), generator=draw).cumsum(1)
    return torch.searchsorted(ends, torch.arange(length).expand(rows, -1).contiguous(), right=True).to(DEVICE)


def whole_rows(length: int, heads: int, groups: int, size: int, dtype: torch.dtype, bound: float) -> None:
    """Causal documents, and documents in both directions."""
    span = document_span(documents(2, length))
    for name, spans in (("causal", causal_spans(span)), ("document", (span, span))):
        leaf, *inputs = random((2, length), heads, groups, size, dtype)
        found = RangeRows(row_sight(*spans))(*inputs)
        compare(found, grouped_attention(*inputs, attention.dense_mask(spans[0])), [leaf], bound, name)
    leaf, query, key, value = random((2, length), heads, groups, size, dtype)
    other = key.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)  # heads lie apart: they are copied
    sight = row_sight(*causal_spans(span))
    torch.testing.assert_close(RangeRows(sight)(query, other, value), RangeRows(sight)(query, key, value))
    flat = [x.flatten(0, 1) for x in (query, key, value)]
    (slope,) = torch.autograd.grad(kernels.range_attention(*flat, *sight, skip=length).sum(), flat[1])
    assert not slope[:length].any()
    assert slope[length:].any()


def noisy(length: int, heads: int, groups: int, size: int, dtype: torch.dtype, bound: float) -> None:
    """The noisy half, with and without gradients of the clean one."""
    document, corrupted, at_T = noisy_batch(documents(3, length).cpu())
    document, at_T = document.to(DEVICE), at_T.to(DEVICE)
    corrupted = type(corrupted)(*(field.to(DEVICE) for field in corrupted))
    sight: Sight = attention.noisy_sight(document_span(document), corrupted, at_T)
    places, count = document.numel(), len(at_T)
    for learns in (True, False):
        clean_leaf, _, clean_key, clean_value = random(document.shape, heads, groups, size, dtype)
        leaf, query, key, value = random((1, count), heads, groups, size, dtype)
        clean = [x if learns else x.detach() for x in (clean_key, clean_value)]
        found = RangeNoisy(*clean, sight)(query, key, value)
        both = (torch.cat((a.flatten(0, 1), b[0])) for a, b in zip(clean, (key, value), strict=True))
        plain = dense(query[0], *both, dense_sight(sight, places + count))[None]
        compare(found, plain, [leaf, *[clean_leaf] * learns], bound, f"noisy {learns}")


def main() -> None:
    """On a GPU rows are so long that the unmasked runs, and what is read ahead in them, have their part."""
    torch.manual_seed(0)
    cuda = DEVICE.type == "cuda"
    cases = [(torch.bfloat16, 2e-2)] * cuda + [(torch.float32, 1e-4 if cuda else 1e-5)]
    if not cuda:  # small tiles, so that several meet in small rows
        for tiles in (kernels.FORWARD, kernels.QUERIES, kernels.KEYS):
            tiles.update(M=16, N=16)
    for dtype, bound in cases:
        for shape in ((4, 2, 16), (3, 1, 24)) + ((14, 2, 64), (9, 3, 128)) * cuda:
            for length in (700, 70) if cuda else (70,):
                whole_rows(length, *shape, dtype, bound)
                noisy(length, *shape, dtype, bound)
            print(f"{dtype}, {shape[0]} heads over {shape[1]} of {shape[2]}: equal", flush=True)


if __name__ == "__main__":
    if DEVICE.type == "cpu":
        let_numpy_2_4_index()
    main()
