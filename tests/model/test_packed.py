"""Packed linear layers give what the plain ones give, on every number of rows decoding uses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openmercury.model.attention import DenseAttend
from openmercury.model.packed import Int8Linear, PackedLinear, can_pack, pack
from tests.tiny import network

needs_packing = pytest.mark.skipif(
    not can_pack(PackedLinear, torch.float32), reason="this PyTorch has no packed products"
)

needs_int8 = pytest.mark.skipif(not can_pack(Int8Linear, torch.float32), reason="this PyTorch has no 8-bit products")


@needs_packing
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 71])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_equals_the_plain_one(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 80, bias=bias)
    x = torch.randn(2, rows, 48)
    packed = PackedLinear(plain.weight, plain.bias)
    with torch.inference_mode():
        for given in (x, x[:1], x[0]):
            torch.testing.assert_close(packed(given), plain(given), atol=1e-5, rtol=1e-5)


@needs_packing
def test_a_packed_network_equals_the_plain_one_clean_and_noisy() -> None:
    model = network(dtype=torch.float32)
    ids = torch.arange(12).view(1, 12) % 7
    position = torch.arange(12).view(1, 12)
    mask = (position[..., None] >= position[:, None]).expand(1, 12, 12)
    noisy = position >= 6
    with torch.inference_mode():
        before = model.logits(model(ids, position, DenseAttend(mask), noisy)[0])
        pack(model)
        after = model.logits(model(ids, position, DenseAttend(mask), noisy)[0])
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Rows on the 255 whole steps that int8 has, symmetric about zero."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


@needs_int8
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 71])
@pytest.mark.parametrize("bias", [False, True])
def test_an_int8_layer_equals_the_plain_one_on_rounded_numbers(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 80, bias=bias)
    x = torch.randn(2, rows, 48)
    packed = Int8Linear(plain.weight, plain.bias)
    with torch.inference_mode():
        y = packed(x)
        torch.testing.assert_close(y, F.linear(rounded(x), rounded(plain.weight), plain.bias), atol=1e-4, rtol=1e-4)
        assert torch.equal(y[1, -1], packed(x[1, -1:])[0]), "a row depends on those beside it"


@needs_int8
def test_int8_keeps_zeros_and_passes_nan_on() -> None:
    packed = Int8Linear(torch.randn(8, 16), None)
    x = torch.zeros(2, 16)
    x[1, 3] = float("nan")
    y = packed(x)
    assert torch.equal(y[0], torch.zeros(8))
    assert y[1].isnan().all()


@needs_int8
def test_an_int8_network_is_near_the_plain_one() -> None:
    model = network(dtype=torch.float32)
    ids, position = torch.arange(12).view(1, 12) % 7, torch.arange(12).view(1, 12)
    attend = DenseAttend((position[..., None] >= position[:, None]).expand(1, 12, 12))
    with torch.inference_mode():
        before = model(ids, position, attend, position >= 6)[0]
        pack(model, Int8Linear)
        after = model(ids, position, attend, position >= 6)[0]
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert (after - before).norm() < 0.05 * before.norm()


def test_float64_cannot_be_packed() -> None:
    assert not can_pack(PackedLinear, torch.float64)
    assert not can_pack(Int8Linear, torch.float64)


def test_wrong_sums_are_noticed() -> None:
    class Saturating(nn.Linear):
        def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
            super().__init__(*reversed(weight.shape))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), self.out_features), 32.0)

    assert not can_pack(Saturating, torch.float32)
