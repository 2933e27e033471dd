"""Packed linear layers give what the plain ones give, on every number of rows decoding uses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openmercury.model.attention import DenseAttend
from openmercury.model.packed import PackedLinear, can_pack, pack
from tests.tiny import network

needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch has no packed products")


@needs_packing
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 71])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_equals_the_plain_one(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 80, bias=bias)
    x = torch.randn(2, rows, 48)
    packed = PackedLinear(plain.weight, plain.bias)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), plain(x), atol=1e-5, rtol=1e-5)


@needs_packing
def test_a_packed_network_equals_the_plain_one_clean_and_noisy() -> None:
    model = network(dtype=torch.float32)
    ids = torch.arange(12).view(1, 12) % 7
    position = torch.arange(12).view(1, 12)
    mask = (position[..., None] >= position[:, None]).expand(1, 12, 12)
    noisy = position >= 6
    with torch.inference_mode():
        before = model.logits(model(ids, position, DenseAttend(mask), noisy)[0])
        assert pack(model)
        after = model.logits(model(ids, position, DenseAttend(mask), noisy)[0])
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_float64_is_left_as_it_is() -> None:
    model = network()
    assert not pack(model)
    assert any(isinstance(module, nn.Linear) for module in model.modules())
