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


def random(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, device=DEVICE).to(dtype).requires_grad_() for shape in shapes]


def rows(heads: int, groups: int, size: int, dtype: torch.dtype, bound: float) -> None:
    """Causal documents, and documents in both directions."""
    document = (torch.arange(70, device=DEVICE) // 30).expand(2, 70).contiguous()
    document[1] //= 2
    span = document_span(document)
    for name, spans in (("causal", causal_spans(span)), ("document", (span, span))):
        inputs = random(dtype, (2, 70, heads, size), (2, 70, groups, size), (2, 70, groups, size))
        found = RangeRows(row_sight(*spans))(*inputs)
        compare(found, grouped_attention(*inputs, attention.dense_mask(spans[0])), inputs, bound, name)


def noisy(heads: int, groups: int, size: int, dtype: torch.dtype, bound: float) -> None:
    """The noisy half, with and without gradients of the clean one."""
    document, corrupted, at_T = (x.to(DEVICE) if isinstance(x, Tensor) else x for x in noisy_batch())
    corrupted = type(corrupted)(*(field.to(DEVICE) for field in corrupted))
    sight: Sight = attention.noisy_sight(document_span(document), corrupted, at_T)
    places, count = document.numel(), len(at_T)
    for learns in (True, False):
        clean_key, clean_value = random(dtype, *[(*document.shape, groups, size)] * 2)
        inputs = random(dtype, (1, count, heads, size), *[(1, count, groups, size)] * 2)
        clean = [x.requires_grad_(learns) for x in (clean_key, clean_value)]
        found = RangeNoisy(clean_key, clean_value, sight)(*inputs)
        plain = dense(
            inputs[0][0],
            *(torch.cat((a.flatten(0, 1), b[0])) for a, b in zip(clean, inputs[1:], strict=True)),
            dense_sight(sight, places + count),
        )[None]
        compare(found, plain, inputs + clean * learns, bound, f"noisy {learns}")


def main() -> None:
    torch.manual_seed(0)
    cases = [(torch.float32, 1e-5 if DEVICE.type == "cpu" else 1e-4)]
    if DEVICE.type == "cuda":
        cases.insert(0, (torch.bfloat16, 2e-2))
    else:  # small tiles, so that several meet in small rows
        for tiles in (kernels.FORWARD, kernels.QUERIES, kernels.KEYS):
            tiles.update(M=16, N=32)
    for dtype, bound in cases:
        for heads, groups, size in ((4, 2, 16), (3, 1, 24)) + (
            ((14, 2, 64), (9, 3, 128)) if DEVICE.type == "cuda" else ()
        ):
            rows(heads, groups, size, dtype, bound)
            noisy(heads, groups, size, dtype, bound)
            print(f"{dtype}, {heads} heads over {groups} of {size}: equal", flush=True)


if __name__ == "__main__":
    if DEVICE.type == "cpu":
        let_numpy_2_4_index()
    main()
