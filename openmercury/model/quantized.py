"""GGUF block formats to tensors, in torch and in slices: about ten times faster than the library's numpy code.

Each reader takes the raw blocks [n, bytes] and gives [n, values] in float32. Formats without a reader here go through
`gguf.dequantize`, which is also the oracle of the tests. Layouts: the block structs of ggml.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import torch
from torch import Tensor

SLICE_BYTES = 1 << 22  # blocks read at once: small enough that the intermediates stay in cache


def _half(raw: Tensor) -> Tensor:
    return raw.contiguous().view(torch.float16).float()


def _q8_0(raw: Tensor) -> Tensor:
    return raw[:, 2:].contiguous().view(torch.int8).float() * _half(raw[:, :2])


def _nibbles(packed: Tensor) -> Tensor:
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _q4_0(raw: Tensor) -> Tensor:
    return (_nibbles(raw[:, 2:]).float() - 8) * _half(raw[:, :2])


def _q5_0(raw: Tensor) -> Tensor:
    shift = torch.arange(8, dtype=torch.uint8)
    fifth = ((raw[:, 2:6, None] >> shift) & 1).flatten(1)
    value = (_nibbles(raw[:, 6:]) | (fifth << 4)).float() - 16
    return value * _half(raw[:, :2])


def _q4_k(raw: Tensor) -> Tensor:
    d, d_min = _half(raw[:, 0:2]), _half(raw[:, 2:4])
    low, middle, high = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scale = torch.cat((low & 63, (high & 15) | ((low >> 6) << 4)), dim=-1).float()
    offset = torch.cat((middle & 63, (high >> 4) | ((middle >> 6) << 4)), dim=-1).float()
    value = _nibbles(raw[:, 16:].view(-1, 4, 32)).view(-1, 8, 32).float()
    return (value * (d * scale)[..., None] - (d_min * offset)[..., None]).flatten(1)


def _q6_k(raw: Tensor) -> Tensor:
    low = _nibbles(raw[:, :128].view(-1, 2, 64)).view(-1, 2, 4, 32)
    shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = (raw[:, 128:192].view(-1, 2, 1, 32) >> shift) & 3
    value = ((low | (high << 4)).float() - 32).view(-1, 16, 16)
    scale = raw[:, 192:208].contiguous().view(torch.int8).float() * _half(raw[:, 208:210])
    return (value * scale[..., None]).flatten(1)


READERS: dict[gguf.GGMLQuantizationType, Callable[[Tensor], Tensor]] = {
    gguf.GGMLQuantizationType.Q4_0: _q4_0,
    gguf.GGMLQuantizationType.Q5_0: _q5_0,
    gguf.GGMLQuantizationType.Q8_0: _q8_0,
    gguf.GGMLQuantizationType.Q4_K: _q4_k,
    gguf.GGMLQuantizationType.Q6_K: _q6_k,
}
PLAIN: dict[gguf.GGMLQuantizationType, torch.dtype] = {
    gguf.GGMLQuantizationType.F32: torch.float32,
    gguf.GGMLQuantizationType.F16: torch.float16,
    gguf.GGMLQuantizationType.BF16: torch.bfloat16,
}


def dequantize(data: np.ndarray, kind: gguf.GGMLQuantizationType, out: Tensor) -> None:
    """Write the values of one GGUF tensor into `out` (any shape of equal size, any float dtype)."""
    flat = out.view(-1)
    if kind in PLAIN:
        flat.copy_(torch.frombuffer(bytearray(data.tobytes()), dtype=PLAIN[kind]))
        return
    if kind not in READERS:
        flat.copy_(torch.from_numpy(gguf.dequantize(data, kind)).view(-1))
        return
    values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = data.view(np.uint8).reshape(-1, block_bytes)
    step = max(1, SLICE_BYTES // block_bytes)
    for begin in range(0, len(blocks), step):
        part = READERS[kind](torch.from_numpy(blocks[begin : begin + step].copy()))
        flat[begin * values : begin * values + part.numel()].copy_(part.view(-1))
