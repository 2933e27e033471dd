"""How the kernels of one forward follow each other: by programmatic dependent launch.

On one GPU a small forward is a chain of some 200 kernels, each of which waits for the one before. With programmatic
dependent launch (Hopper and later) the next kernel is already resident when its turn comes, and may do there what
does not depend on the last one.

What is safe before the wait: each kernel lets the next come up behind its own wait only, so all kernels but the last
have ended by then, and what they wrote can be read.
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


def pad(size: int) -> int:
    """The power of two that holds `size`, as Triton's ranges want it."""
    return max(2, int(triton.next_power_of_2(size)))


@triton.jit
def after_last_kernel(OVERLAP: tl.constexpr):
    """Wait until all that earlier kernels wrote is there; then let the next kernel come up."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
