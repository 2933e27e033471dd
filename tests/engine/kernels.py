"""Checks of the Triton kernels against their plain twins: `python tests/engine/kernels.py`, compiled where there is a
GPU, interpreted with TRITON_INTERPRET=1 elsewhere."""

from __future__ import annotations

import copy

import torch

from openmercury.diffusion.sample import RowParams, choose
from openmercury.engine.cache import GatherAttend, PagedCache
from openmercury.engine.fused import FusedTransformer
from openmercury.engine.kernels import PagedAttend, choose_fused
from openmercury.engine.modes import NOWHERE, ForwardBatch
from openmercury.model.config import ModelConfig
from tests import tiny


def let_numpy_2_4_index() -> None:
    """Triton 3.6 interprets loop bounds by int() of an array with one element, which NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patched


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def attention(rows: int, queries: int, heads: int, kv_heads: int, dtype: torch.dtype, bound: float) -> None:
    """Random pages, ends and groups; padding positions are not compared."""
    config = ModelConfig(
        architecture="llama", vocab_size=8, d_model=8, d_ffn=8, n_layers=1,
        n_heads=heads, n_kv_heads=kv_heads, head_size=32,
    )  # fmt: skip
    page, each = 16, 6
    caches = [PagedCache(config, 1 + rows * each, page, dtype=dtype, device=DEVICE) for _ in range(2)]
    for field in ("key", "value"):
        getattr(caches[0], field).normal_()
        getattr(caches[1], field).copy_(getattr(caches[0], field))
    table = (1 + torch.randperm(rows * each, device=DEVICE)).view(rows, each).int()
    group = (
        torch.randint(-1, 3, (rows, queries), device=DEVICE)
        if queries > 1
        else torch.full((rows, 1), -1, device=DEVICE)
    )
    if queries > 1:
        group[:, -1] = NOWHERE
    # Clean tokens of a row take positions of their own, as in the engine.
    position = torch.stack([torch.randperm(page * each, device=DEVICE)[:queries] for _ in range(rows)])
    start = torch.randint(0, page * each, (rows, queries), device=DEVICE)
    end = torch.where(group == -1, position + 1, start)
    end = torch.where(group == NOWHERE, 0, end)
    batch = ForwardBatch(position, position, end, group, torch.empty(rows, 0))
    shape = (rows, queries, heads + 2 * kv_heads, 32)
    query, key, value = torch.randn(shape, dtype=dtype, device=DEVICE).split((heads, kv_heads, kv_heads), dim=2)
    for noisy in (True, False):
        slow = GatherAttend(caches[0], batch, table, page * each, noisy=noisy)(0, query, key, value)
        fast = PagedAttend(caches[1], batch, table, noisy=noisy)(0, query, key, value)
        seen = (end > 0) if not noisy else (end > 0) | (group >= 0)
        error = (fast - slow)[seen].float().norm() / slow[seen].float().norm()
        assert error < bound, (rows, queries, heads, noisy, float(error))
        torch.testing.assert_close(caches[0].key[:, page:], caches[1].key[:, page:])


def rows_of_logits(rows: int, dtype: torch.dtype) -> None:
    """Greedy and sampled rows together; a token may differ only where two scores nearly tie."""
    vocabulary, mask = 500, 499
    logits = (torch.randn(rows, vocabulary, device=DEVICE) * 3).to(dtype)
    logits[:, mask] = float("-inf")
    params = RowParams(
        torch.tensor([0.0, 0.7, 1.3], device=DEVICE).repeat(rows)[:rows],
        torch.zeros(rows, dtype=torch.long, device=DEVICE),
        torch.ones(rows, device=DEVICE),
        torch.randint(0, 2**62, (rows,), device=DEVICE),
        torch.randint(0, 30000, (rows,), device=DEVICE),
        torch.randint(0, mask, (rows,), device=DEVICE),
    )
    for sample in (False, True):
        given = params if sample else params._replace(temperature_M=torch.zeros(rows, device=DEVICE))
        slow = choose(logits, given, "sampled" if sample else "greedy")
        fast = choose_fused(logits, given, mask, sample=sample)
        assert (slow.token_M == fast.token_M).float().mean() > 0.99, (slow.token_M, fast.token_M)
        same = slow.token_M == fast.token_M
        torch.testing.assert_close(slow.confidence_M[same], fast.confidence_M[same], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(slow.odds_M[same], fast.odds_M[same], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(slow.entropy_M, fast.entropy_M, rtol=1e-3, atol=1e-4)


def network(architecture: str, dtype: torch.dtype, bound: float, rows: int = 2) -> None:
    """Hidden states of the fused network and of the plain one: clean with a cache, then drafts with noise."""
    config = tiny.config(architecture).model_copy(update={"head_size": 32})  # the least that tensor cores take is 16
    model = tiny.network(dtype=torch.float32, of=config).to(DEVICE, dtype)
    for parameter in model.parameters():
        parameter.data *= 0.4
    pages = 1 + torch.arange(rows * 2, device=DEVICE).view(rows, 2).int()
    caches = [PagedCache(model.config, 1 + rows * 2, 16, dtype=dtype, device=DEVICE) for _ in range(2)]
    slow_model, fast_model = model, FusedTransformer(copy.deepcopy(model))
    ids = torch.randint(0, tiny.MASK, (rows, 20), device=DEVICE)
    position = torch.arange(20, device=DEVICE).expand(rows, -1)
    group = torch.where(position < 14, -1, 0)
    steps = [  # (columns of `position`, group, noise)
        (slice(0, 10), torch.full_like(position[:, :10], -1), False),
        (slice(10, 20), group[:, 10:], True),
        (slice(10, 11), group[:, 10:11], False),
    ]
    for columns, own, noisy in steps:
        where = position[:, columns]
        end = torch.where(own == -1, where + 1, 14)
        given = torch.where(own == -1, ids[:, columns], tiny.MASK)
        batch = ForwardBatch(given, where, end, own, torch.empty(rows, 0))
        gate = own >= 0 if noisy else None
        slow = slow_model(given, where, GatherAttend(caches[0], batch, pages, 32, noisy=noisy), gate)
        fast = fast_model(given, where, PagedAttend(caches[1], batch, pages, noisy=noisy), gate)
        error = (fast - slow).float().norm() / slow.float().norm()
        assert error < bound, (architecture, dtype, noisy, float(error))
        torch.testing.assert_close(caches[0].key[:, 16:], caches[1].key[:, 16:], atol=bound * 30, rtol=bound * 10)


if __name__ == "__main__":
    torch.manual_seed(0)
    interpreted = DEVICE.type == "cpu"
    if interpreted:
        let_numpy_2_4_index()
    sizes = (
        [(2, 1, 14, 2), (3, 5, 4, 2)] if interpreted else [(1, 1, 14, 2), (7, 1, 14, 2), (5, 71, 14, 2), (3, 33, 32, 8)]
    )
    for size in sizes:
        attention(*size, torch.float32, 1e-5)
        if not interpreted:
            attention(*size, torch.bfloat16, 1e-2)
    for architecture in ("qwen2", "llama", "qwen3"):
        with torch.inference_mode():
            network(architecture, torch.float32, 1e-4)
            if not interpreted:
                network(architecture, torch.bfloat16, 3e-2, rows=5)
    rows_of_logits(3 if interpreted else 300, torch.float32)
    print("kernels agree with their twins")
