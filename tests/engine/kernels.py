"""Checks of the Triton kernels against their plain twins: `python tests/engine/kernels.py`, compiled where there is a
GPU, interpreted with TRITON_INTERPRET=1 elsewhere."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random

import torch
from torch.nn import functional as F

from openmercury.diffusion.chain import Linker, Shortlist, shortlist
from openmercury.diffusion.sample import NO_TOKEN, Choice, RowParams, choose, scores
from openmercury.diffusion.verify import UNUSED
from openmercury.engine import modes
from openmercury.engine.cache import GatherAttend, PagedCache, slots_of
from openmercury.engine.cuda import attention as cuda_attention
from openmercury.engine.cuda import steps
from openmercury.engine.cuda.attention import Layout, PagedAttend
from openmercury.engine.cuda.chain import Tables, link
from openmercury.engine.cuda.forward import CudaForward
from openmercury.engine.cuda.head import Wanted, choose_fused
from openmercury.engine.cuda.network import FusedTransformer, Stream, block_d
from openmercury.engine.cuda.products import FEW, Matrix, Tiles, product
from openmercury.engine.head import Chosen
from openmercury.engine.modes import NOWHERE, ForwardBatch, Shape
from openmercury.engine.state import RUNNING, Slots
from openmercury.model.config import AdapterFacts, DiffusionFacts, ModelConfig
from openmercury.model.float8 import Float8Linear, round_weights
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


def layout_of(batch: ForwardBatch, pages_RP: torch.Tensor, page: int) -> Layout:
    """A batch as the kernels take it; row r has the page table of slot r."""
    rows = torch.arange(len(pages_RP), device=DEVICE)
    position, end, group = (field.int().flatten() for field in (batch.position_RQ, batch.end_RQ, batch.group_RQ))
    slot = slots_of(batch, pages_RP, page).flatten()
    return Layout(rows, batch.ids_RQ.shape[1], pages_RP, position, end, group, slot)


def products(positions: int, outputs: int, inner: int, dtype: torch.dtype, bound: float) -> None:
    """With the inner axis split and whole, W as it is and in e4m3."""
    x, w = (torch.randn(n, inner, device=DEVICE).to(dtype) for n in (positions, outputs))
    given = (None,) if DEVICE.type == "cuda" else (Tiles(16, 16, 16, 4), Tiles(16, 32, 32, 1), Tiles(16, 32, 64, 1))
    for matrix in (Matrix(w), in_float8(w)):
        exact = F.linear(x.double(), widened(matrix).double())
        for tiles in given:
            got = product(x, matrix, tiles=tiles).double().sum(0)
            assert (got - exact).norm() / exact.norm() < bound, (positions, outputs, inner, tiles, matrix.scale_O)


def in_float8(weight: torch.Tensor) -> Matrix:
    """Rows of very different sizes, so that a scale in the wrong place is noticed."""
    return Matrix.of(Float8Linear(weight * torch.logspace(-1, 1, len(weight), device=DEVICE)[:, None], None))


def widened(matrix: Matrix) -> torch.Tensor:
    """The numbers that a matrix stands for."""
    weight = matrix.weight_OI.float()
    return weight if matrix.scale_O is None else weight * matrix.scale_O[:, None]


def heads(
    count: int, dtype: torch.dtype, *, indexed: bool, float8: bool = False, vocabulary: int = 500, d: int = 64
) -> None:
    """Greedy and sampled rows together; a token may differ only where two scores nearly tie."""
    mask, rows, columns = vocabulary - 1, 3, -(-count // 3) + 2
    n = rows * columns
    x = torch.randn(n, d, device=DEVICE).to(dtype)
    w = (torch.randn(vocabulary, d, device=DEVICE) * 2 / d**0.5).to(dtype)
    head = in_float8(w) if float8 else Matrix(w)
    index = torch.randperm(n, device=DEVICE)[:count].int() if indexed else torch.arange(n, device=DEVICE).int()
    index = index.long()
    position = torch.randint(0, 30000, (n,), device=DEVICE).int()
    proposal = torch.randint(0, mask, (n,), device=DEVICE).int()
    heat = torch.tensor([0.0, 0.7, 1.3], device=DEVICE)
    seed = torch.randint(0, 2**62, (rows,), device=DEVICE)
    slot = torch.arange(rows, device=DEVICE)
    row = slot[index // columns]
    whole = torch.zeros(len(index), device=DEVICE)
    logits = F.linear(x.float(), widened(head))[index]
    logits[:, mask] = float("-inf")
    for sample in (False, True):
        at = heat[row] if sample else whole
        params = RowParams(at, whole.long(), whole + 1, seed[row], position[index].long() + 1, proposal[index].long())
        slow = choose(logits, params, "sampled" if sample else "greedy")
        wanted = Wanted(index.int() if indexed else None, slot, columns, position, proposal, heat, seed)
        fast, listed = choose_fused(x, head, wanted, mask, sample=sample, statistics=True, listed=True)
        assert listed is not None
        short = shortlist(*scores(logits, params, "sampled" if sample else "greedy"))
        for own, other in zip(listed[1:], short[1:], strict=True):
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3)
        assert (listed.token_MC == short.token_MC).float().mean() > 0.99
        same = slow.token_M == fast.token_M
        assert same.float().mean() > 0.99, (slow.token_M, fast.token_M)
        loose = 1e-3
        torch.testing.assert_close(slow.confidence_M[same], fast.confidence_M[same], rtol=loose, atol=loose / 10)
        torch.testing.assert_close(slow.odds_M[same], fast.odds_M[same], rtol=loose, atol=loose / 10)
        torch.testing.assert_close(slow.entropy_M, fast.entropy_M, rtol=loose, atol=loose)
    x[index[0]] = float("nan")
    fast = choose_fused(x, head, wanted, mask, sample=False, statistics=True, listed=True).choice
    assert [float(field[0]) for field in fast] == [NO_TOKEN, 0.0, torch.inf, -1.0]
    assert (fast.token_M >= 0).sum() == len(index) - 1


def chains(dtype: torch.dtype, rows: int, width: int, rank: int, *, indexed: bool) -> None:
    """Drafts and their confidence, behind cold and warm rows."""
    vocabulary = 1500
    config = tiny.config().model_copy(update={"vocab_size": vocabulary})
    facts = DiffusionFacts(mask_id=vocabulary - 1, adapter=AdapterFacts(rank=4, chain=rank))
    model = tiny.network(dtype=dtype, of=config.model_copy(update={"diffusion": facts})).to(DEVICE)
    assert model.chain is not None
    linker = Linker(model, model.chain)
    hidden = torch.randn(rows * (width + 3), config.d_model, device=DEVICE).to(dtype)
    index = torch.stack([torch.arange(width) + r * (width + 3) + 2 for r in range(rows)]).flatten().to(DEVICE)
    token = torch.randint(0, vocabulary - 1, (rows, width + 1), device=DEVICE)
    kept = torch.randint(0, width + 1, (rows,), device=DEVICE)
    heat = torch.tensor([0.0, 0.8] * rows, device=DEVICE)[:rows]
    logits = model.logits(hidden).float()
    row = torch.arange(rows, device=DEVICE).repeat_interleave(width + 3)
    zero = torch.zeros(len(row), device=DEVICE)
    params = RowParams(
        heat[row], zero.long(), zero + 1, zero.long(), torch.arange(len(row), device=DEVICE), zero.long()
    )
    choice, listed = choose(logits, params, "sampled"), shortlist(*scores(logits, params, "sampled"))
    group = index.view(rows, width)
    given = torch.full_like(group, NO_TOKEN)
    given[:, 0] = token.gather(1, kept[:, None])[:, 0]
    slow = linker(given, hidden[group], listed.rows(group), choice.confidence_M[group], heat)
    of = slice(None) if indexed else index
    known = Chosen(Choice(*(x[of].contiguous() for x in choice)), Shortlist(*(x[of].contiguous() for x in listed)))
    slots = Slots.empty(rows + 1, 20, width + 3, 4, DEVICE)
    slots.temperature[:rows] = heat
    row, tables = torch.arange(rows, device=DEVICE), Tables(linker)
    mask = vocabulary - 1
    fast = link(tables, slots, row, token, kept.int(), hidden, index.int(), known, width, mask, indexed=indexed)
    # A block: some of it is settled, the rest is chosen along the chain.
    slots.ahead[:rows] = torch.randint(0, vocabulary - 1, slots.ahead[:rows].shape, device=DEVICE)
    slots.ahead[:rows][torch.rand(slots.ahead[:rows].shape, device=DEVICE) < 0.5] = vocabulary - 1
    shape = Shape("diffusion", width + 3)
    other = Slots(**{f.name: getattr(slots, f.name).clone() for f in dataclasses.fields(slots)})
    for each in (slots, other):
        each.done[:] = RUNNING
        each.length[:], each.limit[:], each.width[:], each.threshold[:] = 3, 20, width + 3, 0.05
    whole = Choice(*(x.view(rows, -1) for x in choice))
    at_once = Shortlist(*(x.view(rows, width + 3, -1) for x in listed))
    modes.apply(
        slots, row, shape, modes.plan(slots, row, shape, width + 3, vocabulary - 1), whole, vocabulary - 1,
        lambda given, _: linker(given, hidden.view(rows, width + 3, -1), at_once, whole.confidence_M, heat),
    )  # fmt: skip
    whole_index, plain = torch.arange(len(hidden), device=DEVICE).int(), choice.token_M.view(rows, -1)
    told = Chosen(choice, listed)
    found = link(tables, other, row, plain, None, hidden, whole_index, told, width + 3, mask, indexed=False)
    chained = choice._replace(token_M=found[0].flatten(), confidence_M=found[1].flatten())
    steps.apply_diffusion(other, row, width + 3, chained, vocabulary - 1)
    if dtype == torch.float32:
        assert (slots.ahead == other.ahead).float().mean() > 0.95, (slots.ahead, other.ahead)
        torch.testing.assert_close(slots.length, other.length)
    same = slow[0] == fast[0]
    if dtype == torch.float32:
        assert same.float().mean() > 0.95, slow[0] == fast[0]
        torch.testing.assert_close(slow[1][same], fast[1][same], rtol=1e-2, atol=1e-3)
    changed = (slow[0] != choice.token_M[group]).float().mean()
    assert changed > 0.05, "the chain chose what was likeliest anyway"
    assert same.float().mean() > 0.6


def random_slots(rng: random.Random, rows: int, width: int) -> Slots:
    """Rows in the middle of their text, some of them finished."""
    longest, page = 40, 4
    slots = Slots.empty(rows + 1, longest, 8, longest // page, DEVICE)
    slots.text[:, :longest] = torch.randint(0, tiny.MASK, (rows + 1, longest), device=DEVICE).int()
    for r in range(1, rows + 1):
        length = rng.randint(2, 25)
        slots.length[r], slots.limit[r] = length, rng.randint(length + 1, 40)
        slots.seen[r] = length
        slots.done[r] = rng.choice([0, 0, 0, 0, 1])
        slots.width[r] = rng.randint(1, width)
        # There may be more drafts than the shape holds: `auto` narrows it at any step.
        slots.ahead_count[r] = rng.randint(0, min(width + 2, int(slots.limit[r]) - length))
        slots.ahead[r] = torch.randint(0, tiny.MASK, (8,), device=DEVICE)
        slots.ahead[r][torch.rand(8, device=DEVICE) < 0.5] = tiny.MASK
        slots.threshold[r], slots.edit_below[r] = rng.choice([(0.3, 1.0), (0.05, 0.2), (2.0, 0.0)])
        slots.quota[r], slots.entropy_bound[r] = rng.choice([(0, -1.0), (2, -1.0), (0, 1.5)])
        slots.stop[r, :3] = torch.randint(0, tiny.MASK, (3,), device=DEVICE)
        lengths = sorted(rng.sample([*range(width + 1), UNUSED], rng.randint(1, width + 1)))[: slots.behind.shape[1]]
        slots.behind[r] = torch.tensor(lengths + [UNUSED] * (slots.behind.shape[1] - len(lengths)), device=DEVICE)
    slots.pages[:] = torch.randperm(slots.pages.numel(), device=DEVICE).view_as(slots.pages).int()
    return slots


def plans_and_applies(seed: int) -> None:
    """One step of random rows in each mode: the same positions asked for, and the same state afterwards."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    width, rows = rng.randint(1, 6), 5
    model = tiny.network(dtype=torch.float32).to(DEVICE)
    for shape in (
        Shape("ar", 1),
        Shape("verified", width),
        Shape("verified", width, "last"),
        Shape("verified", width, "none"),
        Shape("verified", width, 2),
        Shape("verified", width, 5),
        Shape("diffusion", width),
    ):
        slots = random_slots(rng, rows, width)
        if shape.mode == "verified":
            slots.ahead[slots.ahead == tiny.MASK] = 5
        other = Slots(**{f.name: getattr(slots, f.name).clone() for f in dataclasses.fields(slots)})
        row = torch.arange(1, rows + 1, device=DEVICE)
        slow = modes.plan(slots, row, shape, shape.most_columns, tiny.MASK)
        fast = steps.plan(model, other, row, shape, tiny.MASK, 4)
        real = (slow.group_RQ != NOWHERE).flatten()
        layout = fast.layout
        assert layout.columns == slow.ids_RQ.shape[1]
        torch.testing.assert_close(layout.group_N.long(), slow.group_RQ.flatten())
        torch.testing.assert_close(layout.end_N.long(), slow.end_RQ.flatten())
        torch.testing.assert_close(layout.position_N[real].long(), slow.position_RQ.flatten()[real])
        torch.testing.assert_close(layout.slot_N, slots_of(slow, slots.pages[row], 4).flatten())
        gate = slow.group_RQ >= 0
        torch.testing.assert_close(fast.stream.x_ND[real], model.embed(slow.ids_RQ, gate).flatten(0, 1)[real])
        # Choices that often repeat what stands there, so that runs and drafts are kept.
        count = slow.want_RM.numel()
        token = torch.randint(0, tiny.MASK, (rows, count // rows), device=DEVICE)
        k = min(token.shape[1], slots.ahead.shape[1])
        token[:, :k] = torch.where(torch.rand(rows, k, device=DEVICE) < 0.7, slots.ahead[row, :k], token[:, :k])
        token[token == tiny.MASK] = 7
        token[torch.rand(token.shape, device=DEVICE) < 0.1] = NO_TOKEN
        broken = (token == NO_TOKEN).flatten()
        sure, doubt, odds = torch.rand(3, count, device=DEVICE)
        choice = Choice(
            token.flatten(),
            sure.masked_fill(broken, 0.0),
            (doubt * 3).masked_fill(broken, torch.inf),
            (odds * 1.5).masked_fill(broken, -1.0),
        )
        modes.apply(slots, row, shape, slow, Choice(*(x.view_as(token) for x in choice)), tiny.MASK)
        clean = width + 1
        if shape.mode == "ar":
            steps.apply_ar(other, row, choice.token_M)
        elif shape.mode == "diffusion":
            steps.apply_diffusion(other, row, width, choice, tiny.MASK)
        elif shape.groups == "none":
            steps.apply_verified(other, row, shape, token, token, token, picked=False)
        elif shape.groups == "last" or seed % 2:
            confidence = choice.confidence_M.view_as(token)[:, clean:]
            steps.apply_verified(other, row, shape, token[:, :clean], token[:, clean:], confidence, picked=False)
        else:
            index = steps.accept(other, row, shape, token[:, :clean])[1].long()
            drafted, confidence = (x.flatten()[index].view(rows, width) for x in (token, choice.confidence_M))
            steps.apply_verified(other, row, shape, token[:, :clean].contiguous(), drafted, confidence, picked=True)
        active, going = row[other.forwards[row] > 0], row[slots.done[row] == RUNNING]
        torch.testing.assert_close(other.forwards, slots.forwards)
        fields = [("length", active), ("done", active), ("written", active), ("ahead_count", going)]
        for name, those in [*fields, ("behind", going)]:
            torch.testing.assert_close(getattr(other, name)[those], getattr(slots, name)[those], msg=name)
        known = (
            torch.arange(width, device=DEVICE) < slots.ahead_count[going, None]
            if shape.mode == "verified"
            else slice(None)
        )
        torch.testing.assert_close(other.ahead[going][:, :width][known], slots.ahead[going][:, :width][known])
        for r in active.tolist():
            end = int(slots.length[r])
            torch.testing.assert_close(other.text[r, :end], slots.text[r, :end])
        packed = steps.pack(other, row, 8)
        torch.testing.assert_close(packed[:, 0].long(), slots.length[row] - slots.seen[row])
        for r, got in zip(row.tolist(), packed.tolist(), strict=True):
            begin = int(slots.seen[r])
            assert got[4 : 4 + got[0]] == slots.text[r, begin : begin + got[0]].tolist()


def whole_steps(dtype: torch.dtype, head_size: int) -> None:
    """A prompt is read and decoded in each mode by the kernels alone: the text of the plain engine, also where one of
    two rows is bound by a grammar."""
    from openmercury.engine.config import EngineConfig
    from openmercury.engine.engine import Engine
    from openmercury.engine.params import SamplingParams
    from tests.engine.test_constraint import Machine, Walk

    config = tiny.config().model_copy(update={"head_size": head_size, "max_context": 64, "n_layers": 1})
    tied = DiffusionFacts(mask_id=tiny.MASK, adapter=AdapterFacts(rank=4, chain=3))
    chained = config.model_copy(update={"diffusion": tied})
    wide = chained.model_copy(update={"vocab_size": 640})  # so that a shortlist has some entries
    plain_model, chained_model, wide_model = (
        tiny.network(dtype=dtype, of=each).to(DEVICE) for each in (config, chained, wide)
    )
    free: tuple[dict[str, object], ...] = (
        {"mode": "ar", "temperature": 0.9},
        {"mode": "verified", "temperature": 0.0},
        {"mode": "verified", "temperature": 0.9},
        {"mode": "verified", "temperature": 0.0, "frequency_penalty": 1.5},
        {"mode": "diffusion", "temperature": 0.0, "block_size": 3},
    )
    bound = [{**asked, "max_tokens": 6} for asked in (free[0], free[1], free[4])]
    cases = [(asked, "all", False) for asked in free] + [(asked, "all", True) for asked in bound]
    if DEVICE.type == "cpu":  # interpreted, a case takes seconds: what others cover is left out
        cases = [case for case in cases if case[0] not in (free[1], bound[1])]
    more = [(bound[1], "last", True), (free[2], 2, False), (bound[1], 1, True)]
    lenient = {"mode": "diffusion", "block_size": 4, "threshold": 0.01, "edit_below": 0.001, "max_tokens": 8}
    for model, (asked, groups, by_grammar) in [
        *((plain_model, case) for case in [*cases, *more]),
        (chained_model, (bound[1], "last", True)),
        *((wide_model, case) for case in [(free[2], "all", False), (free[1], 2, False), (lenient, "all", False)]),
    ]:
        settings = EngineConfig(
            draft_width=2,
            draft_groups=groups,
            max_requests=2,
            page_size=4,
            cache_tokens=200,  # type: ignore[arg-type]
        )
        texts = []
        for fused in (False, True):
            engine = Engine(copy.deepcopy(model), settings)
            runner = engine.runner
            tables = None if runner.linker is None else Tables(runner.linker)
            forward = CudaForward(runner.model, runner.cache, runner.slots, tiny.MASK, 64, tables)
            runner.cuda = forward if fused else None
            params = SamplingParams.model_validate({"max_tokens": 4, "seed": 3, **asked})
            expected = [7, 8, 9] if params.mode == "verified" and not by_grammar else None
            walk = Walk(Machine(random.Random(4)), forced=True) if by_grammar else None
            requests = [
                engine.request([5, 6, 7], params, expected=expected, constraint=walk),
                engine.request([9, 8, 7, 6, 5], params),
            ]
            list(engine.generate(requests))
            texts.append([(request.completion, request.forwards) for request in requests])
        assert texts[0] == texts[1], (asked, groups, by_grammar, texts)


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
        fast = PagedAttend(caches[1], layout_of(batch, table, page), noisy=noisy)(0, query, key, value)
        seen = (end > 0) if not noisy else (end > 0) | (group >= 0)
        error = (fast - slow)[seen].float().norm() / slow[seen].float().norm()
        assert error < bound, (rows, queries, heads, noisy, float(error))
        torch.testing.assert_close(caches[0].key[:, page:], caches[1].key[:, page:])


def network(architecture: str, dtype: torch.dtype, bound: float, rows: int = 2, *, float8: bool = False) -> None:
    """Hidden states of the fused network and of the plain one: clean with a cache, then drafts with noise."""
    config = tiny.config(architecture).model_copy(update={"head_size": 32})  # the least that tensor cores take is 16
    model = tiny.network(dtype=torch.float32, of=config).to(DEVICE, dtype)
    for parameter in model.parameters():
        parameter.data *= 0.4
    if float8:
        round_weights(model)
    pages = 1 + torch.arange(rows * 2, device=DEVICE).view(rows, 2).int()
    caches = [PagedCache(model.config, 1 + rows * 2, 16, dtype=dtype, device=DEVICE) for _ in range(2)]
    slow_model, fast_model = model, FusedTransformer(copy.deepcopy(model), caches[1])
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
        x = model.embed(given, gate).flatten(0, 1)
        square = F.pad(x.float().square().sum(1, keepdim=True), (0, -(-x.shape[1] // block_d(len(x))) - 1))
        out = fast_model(
            Stream(x, square), layout_of(batch, pages, 16), None if gate is None else gate.flatten().to(torch.int8)
        )
        fast = fast_model.norm(out, model.norm.weight).view_as(slow)
        error = (fast - slow).float().norm() / slow.float().norm()
        assert error < bound, (architecture, dtype, float8, noisy, float(error))
        torch.testing.assert_close(caches[0].key[:, 16:], caches[1].key[:, 16:], atol=bound * 30, rtol=bound * 10)


if __name__ == "__main__":
    torch.manual_seed(0)
    interpreted = DEVICE.type == "cpu"
    if interpreted:
        let_numpy_2_4_index()
        cuda_attention.MOST_SPLITS = 2  # each program takes its time here
    sizes = (
        [(2, 1, 14, 2), (3, 5, 4, 2)] if interpreted else [(1, 1, 14, 2), (7, 1, 14, 2), (5, 71, 14, 2), (3, 33, 32, 8)]
    )
    for size in sizes:
        attention(*size, torch.float32, 1e-5)
        if not interpreted:
            attention(*size, torch.bfloat16, 1e-2)
    for shape in (
        [(3, 40, 56)] if interpreted else [(1, 1280, 896), (60, 9856, 896), (128, 1024, 4864), (16, 1024, 896)]
    ):
        products(*shape, torch.float32, 1e-5)
        if not interpreted:
            products(*shape, torch.bfloat16, 1e-2)
    with torch.inference_mode():
        for seed in range(2 if interpreted else 40):
            plans_and_applies(seed)
        for architecture in ("qwen3",) if interpreted else ("qwen2", "llama", "qwen3"):
            network(architecture, torch.float32, 1e-4)
            if not interpreted:
                network(architecture, torch.bfloat16, 3e-2, rows=5)
                network(architecture, torch.bfloat16, 3e-2, rows=FEW // 8)
        network("qwen2", torch.float32, 1e-4, float8=True)
        if not interpreted:
            network("qwen2", torch.bfloat16, 3e-2, rows=5, float8=True)
            network("qwen2", torch.bfloat16, 3e-2, rows=FEW // 8, float8=True)
    for indexed, float8 in itertools.product((False, True), repeat=2):
        heads(5 if interpreted else 300, torch.float32, indexed=indexed, float8=float8)
        if not interpreted:
            heads(30, torch.bfloat16, indexed=indexed, float8=float8, vocabulary=5000, d=896)
    with torch.inference_mode():
        for indexed in (False, True):
            chains(torch.float32, 3, 4, 12, indexed=indexed)
            if not interpreted:
                chains(torch.bfloat16, 5, 13, 128, indexed=indexed)
    if interpreted:
        whole_steps(torch.float32, 8)
    print("kernels agree with their twins")
