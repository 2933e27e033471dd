"""Attention over pages equals one dense forward, and the GPU's kernels equal their plain twins (interpreted here)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openmercury.diffusion.chain import LISTED
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


def test_kernels_of_the_chain_compile_for_gpus_that_are_not_here() -> None:
    """As they are launched on an H100 for the shipped shape: with overlap, for aligned arguments."""
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.backends.compiler")
    from openmercury.engine.cuda import chain, head

    def compile_for_h100(kernel: Any, kinds: dict[str, str], constants: dict[str, object]) -> None:
        names, constants = kernel.arg_names, {**constants, "OVERLAP": True}
        kinds = {name: "constexpr" if name in constants else kinds.get(name, "*bf16") for name in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if kinds[name] != "constexpr"}
        source = triton.compiler.ASTSource(kernel, kinds, constants, aligned)
        made = triton.compile(source, target=compiler.GPUTarget("cuda", 90, 32), options={"num_warps": 4})
        assert made.metadata.shared <= 232_448, kernel

    rank, d, width, tiles = 128, 896, 13, 1187
    state = {"index": "*i32", "found": "*fp32"}
    compile_for_h100(chain._state_kernel, state, {"D": d, "D_PAD": 1024, "RANK": rank, "BLOCK_R": 32})
    linked = {
        **dict.fromkeys(("rows", "clean", "kept", "listed_token", "ahead", "drafted"), "*i64"),
        **dict.fromkeys(("listed_score", "listed_logit", "first_sure", "state", "temperature", "sure"), "*fp32"),
        **dict.fromkeys(("clean_stride", "ahead_stride", "mask_id"), "i32"),
        "index": "*i32",
    }
    sizes = {"K_PAD": 16, "WIDTH": width, "LISTED": LISTED, "C_PAD": LISTED, "RANK": rank, "R_PAD": rank}
    compile_for_h100(chain._chain_kernel, linked, {**sizes, "BLOCK": True, "INDEXED": False})
    for indexed in (False, True):
        kinds = {**linked, "kept": "*i32"}
        compile_for_h100(chain._chain_kernel, kinds, {**sizes, "BLOCK": False, "INDEXED": indexed})
    listed = dict.fromkeys(("top", "chosen", "score", "logit"), "*fp32")
    kinds = {**listed, "top_at": "*i32", "token": "*i64", "tiles": "i32"}
    pad = triton.next_power_of_2(tiles)
    compile_for_h100(head._shortlist_kernel, kinds, {"BLOCK_T": pad, "LISTED": LISTED})
