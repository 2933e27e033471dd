"""The ranges that the kernel is given against the dense masks, and the kernel itself, interpreted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openmercury.diffusion.corrupt import Corrupted, corrupt, cut_blocks
from openmercury.train.attention import (
    Sight,
    causal_spans,
    dense_mask,
    document_span,
    noisy_sight,
    noisy_spans,
    row_sight,
)

DOCUMENTS = torch.tensor([[0] * 20 + [1] * 38, [0] * 58, [0] * 15 + [1] * 32 + [-1] * 11])


def noisy_batch(document: Tensor = DOCUMENTS) -> tuple[Tensor, Corrupted, Tensor]:
    """Documents of three rows, noisy rows and the places of some whole blocks and a cut one, in order."""
    draw = torch.Generator().manual_seed(2)
    learnt = torch.rand(document.shape, generator=draw) < 0.9
    blocks = cut_blocks(document, learnt, torch.tensor([4, 8, 16]), torch.tensor([1, 0, 4]))
    masked = torch.rand(document.shape, generator=draw) < 0.5
    noisy = corrupt(torch.zeros_like(document), masked, learnt, torch.ones(document.shape), blocks, 63)
    some = torch.rand(document.shape, generator=draw).gather(1, noisy.block_BL) < 0.7
    at_T = some.flatten().nonzero()[:, 0]
    return document, noisy, at_T[:-2]


def dense_sight(sight: Sight, keys: int) -> Tensor:
    """[Q, K]: what each query sees."""
    key, (a, b, c, d) = torch.arange(keys, device=sight.seen_4Q.device), sight.seen_4Q[..., None]
    return (key >= a) & (key < b) | (key >= c) & (key < d)


def dense(query_QHE: Tensor, key_KGE: Tensor, value_KGE: Tensor, mask_QK: Tensor) -> Tensor:
    from openmercury.model.attention import grouped_attention

    return grouped_attention(query_QHE[None], key_KGE[None], value_KGE[None], mask_QK[None])[0]


def check_seers(sight: Sight, seen_QK: Tensor) -> None:
    """Nobody outside a key's run of seers sees it, and the run is not the whole batch."""
    query = torch.arange(len(seen_QK))[:, None]
    first, end = sight.seers_2K
    assert not (seen_QK & ((query < first) | (query >= end))).any()
    assert int((end - first).clamp(min=0).max()) < len(seen_QK)


def test_sight_of_rows() -> None:
    document = noisy_batch()[0]
    rows, length = document.shape
    span = document_span(document)
    for spans in (causal_spans(span), (span, span)):
        sight, expected = row_sight(*spans), dense_mask(spans[0])
        seen = dense_sight(sight, rows * length)
        check_seers(sight, seen)
        for row in range(rows):
            own = slice(row * length, (row + 1) * length)
            assert torch.equal(seen[own, own], expected[row])
            assert seen[own].sum() == expected[row].sum()


def test_sight_of_noisy_positions() -> None:
    document, noisy, at_T = noisy_batch()
    rows, length = document.shape
    span = document_span(document)
    sight, expected = noisy_sight(span, noisy, at_T), dense_mask(*noisy_spans(span, noisy))
    seen = dense_sight(sight, rows * length + len(at_T))
    check_seers(sight, seen)
    for t, place in enumerate(at_T.tolist()):
        row = place // length
        own = slice(row * length, (row + 1) * length)
        same = at_T[at_T // length == row]
        assert torch.equal(seen[t, own], expected[row, place % length, :length])
        assert torch.equal(
            seen[t, rows * length :][at_T // length == row], expected[row, place % length, length:][same % length]
        )
        assert seen[t].sum() == seen[t, own].sum() + seen[t, rows * length :][at_T // length == row].sum()
    assert int(seen.sum(1).min()) > 0, "a softmax over nothing"


H100, RTX = (90, 232_448), (86, 101_376)  # compute capability, and shared memory of a program


@pytest.mark.parametrize(
    ("gpu", "dtype", "size"), [(H100, torch.bfloat16, 64), (H100, torch.float32, 128), (RTX, torch.bfloat16, 128)]
)
def test_kernels_compile_for_gpus_that_are_not_here(gpu: tuple[int, int], dtype: torch.dtype, size: int) -> None:
    """And fit into their shared memory, compiled as they are launched: for aligned arguments."""
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.backends.compiler")
    from openmercury.train import kernels

    data = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    known = {"seen": "*i32", "seers": "*i32", "log_total": "*fp32", "delta": "*fp32", "scale": "fp32", "scale2": "fp32"}
    numbers = ("queries", "keys", "skip", "heads", "stride_q", "stride_k", "stride_v")
    for kernel, tiles in (
        (kernels._forward_kernel, kernels.FORWARD),
        (kernels._queries_kernel, kernels.QUERIES),
        (kernels._keys_kernel, kernels.KEYS),
    ):
        constants = kernels._constants(2, 2, size, dtype, tiles, gpu[1])
        kinds = {name: "constexpr" if name in constants else data for name in kernel.arg_names}
        kinds |= {name: kind for name, kind in known.items() if name in kinds}
        kinds |= dict.fromkeys(set(numbers) & set(kinds), "i32")
        names = kernel.arg_names
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if kinds[name][:4] not in ("cons", "fp32")
        }
        given = {name: value for name, value in constants.items() if name in names}
        source = triton.compiler.ASTSource(kernel, kinds, given, aligned)
        options = {name: constants[name] for name in ("num_warps", "num_stages")}
        made = triton.compile(source, target=compiler.GPUTarget("cuda", gpu[0], 32), options=options)
        assert made.metadata.shared <= gpu[1], kernel


@pytest.mark.timeout(400)
def test_kernels_interpreted() -> None:
    """In a process of its own, since Triton decides at import whether to interpret."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("`python -m tests.train.kernels` runs compiled on this machine")
    run = subprocess.run(
        [sys.executable, "-m", "tests.train.kernels"],
        env={"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
