"""Our block readers equal the gguf library's, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from openmercury.model.quantized import PLAIN, READERS, dequantize


@pytest.mark.parametrize("kind", list(READERS), ids=lambda kind: kind.name)
def test_equals_library(kind: gguf.GGMLQuantizationType) -> None:
    values, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (6, 4 * size), dtype=np.uint8)
    blocks = data.reshape(-1, size)
    scale = np.array([0.01], dtype=np.float16).view(np.uint8)
    for at in {"Q4_K": (0, 2), "Q6_K": (208,)}.get(kind.name, (0,)):
        blocks[:, at : at + 2] = scale  # a random half float may be NaN
    out = torch.empty(6, 4 * values)
    dequantize(data, kind, out)
    assert torch.equal(out, torch.from_numpy(gguf.dequantize(data, kind)))


@pytest.mark.parametrize("kind", list(PLAIN), ids=lambda kind: kind.name)
def test_plain_types(kind: gguf.GGMLQuantizationType) -> None:
    values = torch.randn(3, 8).to(PLAIN[kind])
    data = values.view(torch.uint8).numpy()
    out = torch.empty(3, 8)
    dequantize(data, kind, out)
    assert torch.equal(out, values.float())
