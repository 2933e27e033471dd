"""Attention over pages equals one dense forward, and the GPU's kernels equal their plain twins (interpreted here)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openmercury.engine.cache import GatherAttend, PagedCache
from openmercury.engine.modes import NOWHERE, ForwardBatch
from openmercury.model.attention import DenseAttend
from openmercury.model.masks import visible
from tests import tiny

PAGE = 4


def pages(rows: int, each: int) -> Tensor:
    """Scattered page tables that share nothing."""
    return (1 + torch.randperm(rows * each)).view(rows, each).int()


def batch(ids: Tensor, position: Tensor, end: Tensor, group: Tensor) -> ForwardBatch:
    return ForwardBatch(ids, position, end, group, torch.empty(len(ids), 0))


def test_cached_equals_uncached() -> None:
    """Chunks of any size over scattered pages, with padding and a noisy group at the end, equal one dense forward."""
    model = tiny.network()
    n, split, k = 11, 4, 3
    ids = torch.randint(0, 60, (2, n + k))
    position = torch.arange(n + k).expand(2, -1)
    group = torch.where(position < n, -1, 0)
    end = torch.where(position < n, position + 1, n)
    dense = model(ids, position, DenseAttend(visible(end, group, position, group)), group >= 0)
    table = pages(2, 4)
    cache = PagedCache(model.config, 9, PAGE, dtype=torch.float64, device=torch.device("cpu"))
    first = batch(*(x[:, :split] for x in (ids, position, end, group)))
    out = [model(first.ids_RQ, first.position_RQ, GatherAttend(cache, first, table, split, noisy=False))]

    def pad(x: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(x[:, split:], (0, 2), value=value)

    second = batch(pad(ids, 0), pad(position, 0), pad(end, 0), pad(group, NOWHERE))
    attend = GatherAttend(cache, second, table, n, noisy=True)
    out.append(model(second.ids_RQ, second.position_RQ, attend, second.group_RQ >= 0)[:, :-2])
    torch.testing.assert_close(torch.cat(out, dim=1), dense)


@pytest.mark.timeout(400)
def test_kernels_interpreted() -> None:
    """The kernels run in a process of their own, since Triton decides at import whether to interpret."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("tests/engine/kernels.py runs compiled on this machine")
    script = Path(__file__).with_name("kernels.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        env={"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(script.parents[2])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
