"""How the kernels of one forward follow each other: programmatic dependent launch, and weights fetched ahead of it.

On one GPU a small forward is a chain of some 200 kernels, each of which waits for the one before. With programmatic
dependent launch (Hopper and later) the next kernel is already resident when its turn comes, and has asked for its
weights, which depend on nobody, before it waits.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@functools.cache
def overlaps(device: torch.device) -> bool:
    """Can kernels of this device be launched ahead of those they depend on?"""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def after_last_kernel(OVERLAP: tl.constexpr):
    """Wait until all that earlier kernels wrote is there; then let the next kernel come up."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def fetch_rows(matrix, first, rows, stride, start, length, BLOCK_N: tl.constexpr, OVERLAP: tl.constexpr):
    """Ask for elements start ‥ start + length of BLOCK_N rows of a bfloat16 matrix to come into the L2 cache.

    One thread asks for each row: the others would only ask again.
    """
    if OVERLAP:
        n = tl.minimum(first + tl.arange(0, BLOCK_N), rows - 1).to(tl.int64)
        address = (matrix + n * stride + start).to(tl.int64)
        size = tl.zeros([BLOCK_N], tl.int32) + length * 2
        tl.inline_asm_elementwise(
            """{
            .reg .pred once;
            .reg .u32 thread;
            mov.u32 thread, %tid.x;
            setp.lt.u32 once, thread, $3;
            @once cp.async.bulk.prefetch.L2.global [$1], $2;
            mov.u32 $0, 0;
            }""",
            "=r,l,r,r", [address, size, BLOCK_N], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
