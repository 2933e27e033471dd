"""Owns the network, the cache and the slots: the only part of the engine that touches the device.

A decoding step is plan → forward → choose → apply, all on the device. On CUDA it is captured once for each shape and
number of rows, and replayed as one graph; results are read when the host asks for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from openmercury.diffusion.chain import Linker
from openmercury.diffusion.sample import NO_TOKEN, Sampling
from openmercury.diffusion.verify import UNUSED
from openmercury.engine import modes
from openmercury.engine.cache import GatherAttend, PagedCache, slots_of
from openmercury.engine.config import DEFAULT_EDIT_BELOW, DEFAULT_THRESHOLD, ROW_BUCKETS, EngineConfig, bucket
from openmercury.engine.constraint import Words
from openmercury.engine.head import Chosen, Head
from openmercury.engine.modes import ForwardBatch, Shape
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import Request
from openmercury.engine.scheduler import PrefillSpan
from openmercury.engine.state import INTS, LENGTH, MAX_STOP_IDS, REALS, RUNNING, Slots
from openmercury.engine.stats import EngineStats, timed_head, timed_host, timed_step
from openmercury.engine.widths import MOST_GROUPS
from openmercury.errors import DeviceMemoryError
from openmercury.model.masks import CLEAN
from openmercury.model.transformer import Attend, Transformer

if TYPE_CHECKING:
    from openmercury.engine.cuda.forward import CudaForward

Result = TypeVar("Result")

CHUNK_BUCKETS = (32, 64, 128, 256, 512, 1024)
CAPTURED_PREFILL = 2048  # positions up to which launches, not arithmetic, bound the reading of prompts
CPU_CONTEXTS = 4  # full contexts the cache of a CPU has room for


class Progress(NamedTuple):
    """What happened to one row since the host looked last."""

    tokens: list[int]
    written: int
    forwards: int
    done: int


@dataclass
class Pending:
    """Results of launched forwards on their way to the host: one row a request, valid once `ready` has passed."""

    packed: Tensor
    begin: torch.cuda.Event | None
    ready: torch.cuda.Event | None
    host_seconds: float | None = None  # of the call; None where a graph was captured, or no forward ran

    def seconds(self) -> float | None:
        """What the forwards took, once results are there; None where that says nothing of the next ones."""
        if self.host_seconds is None or self.begin is None or self.ready is None:
            return self.host_seconds
        return float(self.begin.elapsed_time(self.ready)) / 1e3


@dataclass
class Captured:
    """A step as a CUDA graph, with what it reads ([inputs, rows], last `given`) and what it returns."""

    step: Callable[..., Any]
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    result: Any
    given: Sequence[tuple[int | None, ...]] | None = None


def policy_fields(params: SamplingParams, width: int) -> tuple[float, int, float]:
    """Threshold, quota and entropy bound of a request; a policy that is off has the value that accepts nothing."""
    default = DEFAULT_THRESHOLD if params.steps is None and params.entropy_bound is None else 2.0
    threshold = default if params.threshold is None else params.threshold
    quota = 0 if params.steps is None else -(-width // params.steps)
    return threshold, quota, -1.0 if params.entropy_bound is None else params.entropy_bound


def edit_below(params: SamplingParams) -> float:
    """The odds under which a settled token is replaced."""
    return DEFAULT_EDIT_BELOW if params.edit_below is None else params.edit_below


class Runner:
    """Runs forwards over slots. Rows are slot numbers; slot 0 pads."""

    def __init__(self, model: Transformer, config: EngineConfig, widest: int) -> None:
        self.model, self.config = model, config
        self.device, self.dtype = model.embedding.weight.device, model.embedding.weight.dtype
        self.fused = self.device.type == "cuda"
        facts = model.config.diffusion
        self.mask_id = NO_TOKEN if facts is None else facts.mask_id
        self.linker = None if model.chain is None else Linker(model, model.chain)
        # Exact float32 products are slow in Triton, and cuBLAS has them.
        kernels = self.fused and self.dtype == torch.bfloat16
        tables = None
        if kernels and self.linker is not None:  # before the cache takes its share of the memory
            from openmercury.engine.cuda.chain import Tables

            tables = Tables(self.linker)
        longest = model.config.max_context
        self.slots, self.cache = self._allocate(longest, widest)
        self.pages = self.cache.key.shape[1] // config.page_size
        self.graphs: dict[Hashable, Captured] = {}
        self.words = -(-model.config.vocab_size // 32)
        self.allowed: dict[int, Tensor] = {}  # by columns, [most rows of a forward, columns, words] each
        self.cuda: CudaForward | None = None
        self.stats: EngineStats | None = None
        if kernels:
            from openmercury.engine.cuda.forward import CudaForward

            self.cuda = CudaForward(model, self.cache, self.slots, self.mask_id, config.head_rows, tables)

    def _allocate(self, longest: int, widest: int) -> tuple[Slots, PagedCache]:
        """Rows and cache; raises DeviceMemoryError with the setting to lower."""
        config, size = self.config, self.config.page_size
        tokens = None
        try:
            slots = Slots.empty(config.max_requests + 1, longest, widest, -(-longest // size), self.device)
            tokens = config.cache_tokens or self._affordable_tokens(longest)
            pages = 1 + -(-tokens // size)
            cache = PagedCache(self.model.config, pages, size, dtype=self.dtype, device=self.device)
        except (MemoryError, RuntimeError) as error:  # what NumPy and torch raise where memory is short
            if tokens is None:
                raise DeviceMemoryError(
                    f"the state of {config.max_requests} requests does not fit into the memory of {self.device}: "
                    "lower max_requests"
                ) from error
            asked = tokens * PagedCache.bytes_per_token(self.model.config, self.dtype) / 1e9
            raise DeviceMemoryError(
                f"a KV cache of {tokens} tokens ({asked:.1f} GB) does not fit into the memory of {self.device}: "
                f"lower {'cache_share' if config.cache_tokens is None else 'cache_tokens'}"
            ) from error
        return slots, cache

    def _affordable_tokens(self, longest: int) -> int:
        if self.device.type != "cuda":
            return CPU_CONTEXTS * longest
        free, _ = torch.cuda.mem_get_info(self.device)
        each = PagedCache.bytes_per_token(self.model.config, self.dtype)
        tokens = min(int(free * self.config.cache_share / each), self.config.max_requests * longest)
        if tokens < self.config.page_size:
            raise DeviceMemoryError(
                f"{free / 1e9:.1f} GB are free on {self.device}, too little for a KV cache: "
                "end what else runs there, raise cache_share or take a smaller model"
            )
        return tokens

    def record(self, stats: EngineStats) -> None:
        """Feed a recorder from now on."""
        self.stats = stats
        if self.cuda is not None:
            self.cuda.stats = stats

    # --- rows in and out ---------------------------------------------------------------------------------------------

    def admit(self, requests: Sequence[Request]) -> None:
        """Write new rows: text, limits, parameters."""
        slots, texts = self.slots, [request.tokens for request in requests]
        ints, reals = zip(*(_row_fields(request) for request in requests), strict=True)
        longest, stops = max(map(len, texts)), [_stop_row(request) for request in requests]
        whole = [[request.slot, *row, *stop] for request, row, stop in zip(requests, ints, stops, strict=True)]
        rows, given, stop = self._tensor(whole).split((1, len(INTS), MAX_STOP_IDS), dim=1)
        rows = rows.flatten()
        slots.ints[:, rows] = given.t()
        slots.reals[:, rows] = self._tensor(reals).to(slots.reals.dtype).t()
        slots.stop[rows] = stop
        slots.text[rows, :longest] = self._tensor([text + [0] * (longest - len(text)) for text in texts]).int()
        slots.ahead.index_fill_(0, rows, self.mask_id)  # a number assigned by index would wait for the device
        for request in requests:
            if request.ahead is not None:
                slots.ahead[request.slot] = request.ahead
                request.ahead = None
        self.set_pages(requests)

    def set_pages(self, requests: Sequence[Request]) -> None:
        """Write the page tables of some rows."""
        longest = max(len(request.pages) for request in requests)
        table = [[request.slot, *request.pages] + [0] * (longest - len(request.pages)) for request in requests]
        given = self._tensor(table)
        self.slots.pages[given[:, 0], :longest] = given[:, 1:].int()

    def leave(self, slots: Sequence[int]) -> None:
        """Freeze rows whose request ended on the host's side."""
        self.slots.done.index_fill_(0, self._tensor(list(slots)), LENGTH)

    def block(self, slot: int) -> Tensor:
        """A copy of the active block or drafts of one row."""
        return self.slots.ahead[slot].clone()

    def drafts(self, request: Request) -> list[int]:
        """The drafted tokens or the active block of a running request, for display; mode `ar` has neither."""
        if request.slot is None or request.mode == "ar":
            return []
        room = max(0, request.limit - len(request.tokens))
        count = (
            int(self.slots.ahead_count[request.slot])
            if request.mode in ("verified", "auto")
            else min(request.width, room)
        )
        ids: list[int] = self.slots.ahead[request.slot, :count].tolist()
        return ids

    # --- constraints -------------------------------------------------------------------------------------------------

    def standing(self, slots: Sequence[int], width: int) -> list[tuple[list[int], int]]:
        """What stands behind the text of some rows, up to `width` tokens, and how many of them are drafts."""
        rows = self._tensor(list(slots))
        both = torch.cat((self.slots.ahead[rows, :width], self.slots.ahead_count[rows, None]), dim=1)
        return [(row[:-1], min(row[-1], width)) for row in both.tolist()]

    def stand(self, slots: Sequence[int], ahead: Sequence[tuple[Sequence[int], int]]) -> None:
        """Write what `standing` reads."""
        longest = max(len(ids) for ids, _ in ahead)
        table = [[count, *ids] + [0] * (longest - len(ids)) for ids, count in ahead]
        rows, given = self._tensor(list(slots)), self._tensor(table)
        self.slots.ahead_count[rows] = given[:, 0]
        self.slots.ahead[rows, :longest] = given[:, 1:]
        behind = torch.full((len(rows), MOST_GROUPS), UNUSED, device=self.device)
        behind[:, :1] = given[:, :1]  # what stands is not known to be likely cut off anywhere: kept whole, then
        self.slots.behind[rows] = behind

    def allow(self, words_RCW: Words) -> None:
        """Which tokens the clean columns of the coming constrained forward may choose, in the order of its rows."""
        given = torch.from_numpy(words_RCW)
        target = self._allowed(*words_RCW.shape[:2])
        target.copy_(given.pin_memory() if self.fused else given, non_blocking=self.fused)

    def _allowed(self, rows: int, columns: int) -> Tensor:
        """Where graphs find what may be chosen: it must stay where it is, so it is as large as it will ever be."""
        if columns not in self.allowed:
            most = bucket(self.config.max_requests, ROW_BUCKETS)
            self.allowed[columns] = torch.empty(most, columns, self.words, dtype=torch.int32, device=self.device)
        return self.allowed[columns][:rows]

    # --- forwards ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(self, spans: Sequence[PrefillSpan]) -> None:
        """Write committed tokens to the cache, many rows at once; nothing is predicted."""
        given = [(span.request.slot, span.start, span.length) for span in spans]
        columns = max(span.length for span in spans)
        if self.fused and self.config.graphs and columns * len(spans) <= CAPTURED_PREFILL:
            columns, size = bucket(columns, CHUNK_BUCKETS), bucket(len(spans), ROW_BUCKETS)
            # Padding writes the first token of slot 0, which nobody reads.
            self._replay_prefill(columns, given + [(0, 0, 0)] * (size - len(spans)))
        else:
            values = self._tensor(list(zip(*given, strict=True)))
            with timed_step(self.stats, "prefill"):
                self._prefill(columns)(*values)

    def _prefill(self, columns: int) -> Callable[..., None]:
        def run(rows: Tensor, start: Tensor, count: Tensor) -> None:
            if self.cuda is not None:
                self.cuda.prefill(rows, start, count, columns)
                return
            batch = modes.plan_prefill(self.slots, rows, start, count, columns)
            self.model(batch.ids_RQ, batch.position_RQ, self._attend(batch, rows, noisy=False), None)
            self.slots.written[rows] = start + count

        return run

    @torch.inference_mode()
    def decode(self, shape: Shape, slots: Sequence[int], sampling: Sampling, forwards: int = 1) -> Pending:
        """Run `forwards` decoding forwards of some slots; on CUDA they go on while the host does other things."""
        most, graphs, start = shape.most_committed * forwards, len(self.graphs), time.perf_counter()
        begin = self._now()
        if self.fused and self.config.graphs:
            packed = self._replay_decode(shape, slots, sampling, forwards)
        else:
            rows = self._tensor(list(slots))
            with timed_step(self.stats, "decode", forwards):
                packed = self._decode(shape, sampling, forwards)(rows)
        assert packed.shape[1] == 4 + most
        pending = self._fetch(packed[: len(slots)], begin)
        if len(self.graphs) == graphs:
            pending.host_seconds = time.perf_counter() - start
        return pending

    @torch.inference_mode()
    def gained(self, shape: Shape, requests: Sequence[Request], forwards: int) -> Pending:
        """What `decode` would have returned, had it not raised: all that the requests do not know yet."""
        rows = self._tensor([request.slot for request in requests])
        self.slots.seen[rows] = self._tensor([len(request.tokens) for request in requests])
        return self._fetch(self._pack(rows, shape.most_committed * forwards), self._now())

    @torch.inference_mode()
    def warm_prefill(self) -> None:
        """Capture the graphs that read prompts."""
        for columns in CHUNK_BUCKETS:
            for size in ROW_BUCKETS:
                if columns * size <= CAPTURED_PREFILL:
                    self._replay_prefill(columns, [(0, 0, 0)] * size)

    @torch.inference_mode()
    def warm_decode(self, shape: Shape, rows: int, sampling: Sampling, forwards: int) -> float:
        """Capture the graph of so many rows and forwards; returns the seconds of one forward over finished rows."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(3):  # the last one's time stands
            begin.record()
            self._replay_decode(shape, [0] * rows, sampling, forwards)
            end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / forwards

    def _decode(self, shape: Shape, sampling: Sampling, forwards: int) -> Callable[[Tensor], Tensor]:
        def run(rows: Tensor) -> Tensor:
            allowed = self._allowed(len(rows), shape.most_columns) if shape.constrained else None
            for _ in range(forwards):
                if self.cuda is not None:
                    self.cuda.decode(rows, shape, sampling, allowed)
                else:
                    columns = shape.most_columns if self.fused else modes.needed_columns(self.slots, rows, shape)
                    self._step(shape, rows, columns, sampling, allowed)
            return self._pack(rows, shape.most_committed * forwards)

        return run

    def _step(self, shape: Shape, rows: Tensor, columns: int, sampling: Sampling, allowed_RCW: Tensor | None) -> None:
        batch = modes.plan(self.slots, rows, shape, columns, self.mask_id)
        noisy = shape.noisy
        gate = batch.group_RQ >= 0 if noisy else None
        hidden_RQD = self.model(batch.ids_RQ, batch.position_RQ, self._attend(batch, rows, noisy=noisy), gate)
        want_RM1 = batch.want_RM[..., None]
        hidden_RMD = hidden_RQD.gather(1, want_RM1.expand(-1, -1, hidden_RQD.shape[-1]))
        position_RM = batch.position_RQ.gather(1, batch.want_RM) + 1
        params = self.slots.sampling(rows, position_RM)
        penalties = None
        if shape.penalised:
            end_RM = batch.end_RQ.gather(1, batch.want_RM)
            penalties = self.slots.penalties(rows, end_RM, self.model.config.vocab_size)
        statistics = shape.mode == "diffusion" or shape.likely
        tied = self.linker is not None and shape.noisy
        drafting = hidden_RMD.shape[1] - (columns if shape.mode == "verified" else 0)
        allowed = None if allowed_RCW is None else allowed_RCW[:, :columns]
        with timed_head(self.stats):
            head = Head(self.model, self.config.head_rows, sampling, statistics)
            chosen = head.choose(hidden_RMD, params, penalties, allowed, drafting if tied else 0)
        link = partial(self._link, chosen, hidden_RMD, self.slots.temperature[rows]) if tied else None
        modes.apply(self.slots, rows, shape, batch, chosen.choice, self.mask_id, link)

    def _link(
        self, chosen: Chosen, hidden_RMD: Tensor, heat_R: Tensor, given_RG: Tensor, at_RG: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `modes.Link`."""
        assert self.linker is not None
        assert chosen.listed is not None
        row_R1 = torch.arange(len(at_RG), device=self.device)[:, None]
        unlisted = hidden_RMD.shape[1] - chosen.listed.token_MC.shape[1]
        listed = chosen.listed.rows((row_R1, at_RG - unlisted))
        return self.linker(
            given_RG, hidden_RMD[row_R1, at_RG], listed, chosen.choice.confidence_M[row_R1, at_RG], heat_R
        )

    def _attend(self, batch: ForwardBatch, rows: Tensor, *, noisy: bool) -> Attend:
        pages_RP = self.slots.pages[rows]
        if self.fused:
            from openmercury.engine.cuda.attention import Layout, PagedAttend

            columns = batch.ids_RQ.shape[1]
            fields = (batch.position_RQ, batch.end_RQ, batch.group_RQ)
            where, end, group = (field.int().flatten() for field in fields)
            slot = slots_of(batch, pages_RP, self.cache.page_size).flatten()
            return PagedAttend(
                self.cache, Layout(rows, columns, self.slots.pages, where, end, group, slot), noisy=noisy
            )
        used = 1 + int(torch.where(batch.group_RQ == CLEAN, batch.position_RQ, 0).max())
        return GatherAttend(self.cache, batch, pages_RP, used, noisy=noisy)

    def _replay_prefill(self, columns: int, given: Sequence[tuple[int | None, ...]]) -> None:
        self._replay(("prefill", columns, len(given)), given, self._prefill(columns), 0)

    def _replay_decode(self, shape: Shape, slots: Sequence[int], sampling: Sampling, forwards: int) -> Tensor:
        size = bucket(len(slots), ROW_BUCKETS)
        padded = [(slot,) for slot in slots] + [(0,)] * (size - len(slots))
        return self._replay(
            (shape, sampling, size, forwards), padded, self._decode(shape, sampling, forwards), forwards
        )

    def _replay(
        self, key: Hashable, given: Sequence[tuple[int | None, ...]], step: Callable[..., Result], forwards: int
    ) -> Result:
        """Run `step` of so many decoding `forwards` over the columns of `given` as a graph, captured when first wanted;
        its result is overwritten by the next replay."""
        if key not in self.graphs:
            self.graphs[key] = self._capture(step, (len(given[0]), len(given)))
            if self.stats is not None:
                self.stats.captured()
        captured = self.graphs[key]
        if captured.given != given:
            captured.inputs.copy_(self._tensor(list(zip(*given, strict=True))))
            captured.given = given
        with timed_step(self.stats, "decode" if forwards else "prefill", forwards, key):
            captured.graph.replay()
        result: Result = captured.result
        return result

    @torch.inference_mode()
    def replay_apart(self, key: Hashable) -> None:
        """Capture the step of a graph once more and replay it over nothing, for `stats` to look into."""
        step, inputs = self.graphs[key].step, self.graphs[key].inputs
        again = self._capture(step, (inputs.shape[0], inputs.shape[1]))
        for _ in range(3):  # the first finds nothing in the caches; the last one's times stand
            again.graph.replay()
        torch.cuda.synchronize(self.device)

    def _capture(self, step: Callable[..., Result], shape: tuple[int, int]) -> Captured:
        """Capture one step over rows of slot 0, which is always finished: nothing changes but scratch."""
        inputs = torch.zeros(shape, dtype=torch.long, device=self.device)
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                step(*inputs)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next((captured.graph.pool() for captured in self.graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            result = step(*inputs)
        return Captured(step, graph, inputs, result)

    # --- results -----------------------------------------------------------------------------------------------------

    def _pack(self, rows: Tensor, most: int) -> Tensor:
        """What rows gained since the last call, at most `most` tokens each: [R, 4 + most]."""
        if self.cuda is not None:
            from openmercury.engine.cuda import steps

            return steps.pack(self.slots, rows, most)
        state, seen = self.slots, self.slots.seen[rows]
        length = state.length[rows]
        window = (seen[:, None] + torch.arange(most, device=self.device)).clamp(max=state.text.shape[1] - 1)
        facts = (length - seen, state.written[rows], state.forwards[rows], state.done[rows])
        packed = torch.cat((torch.stack(facts, dim=1).int(), state.text[rows[:, None], window]), dim=1)
        state.seen[rows] = length
        return packed

    def _now(self) -> torch.cuda.Event | None:
        if not self.fused:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _fetch(self, packed: Tensor, begin: torch.cuda.Event | None) -> Pending:
        if begin is None:
            return Pending(packed, None, None)
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True).copy_(packed, non_blocking=True)
        ready = torch.cuda.Event(enable_timing=True)
        ready.record()
        return Pending(host, begin, ready)

    def results(self, pending: Pending) -> list[Progress]:
        """Wait for launched forwards and read what each row gained."""
        if pending.ready is not None:
            with timed_host(self.stats, "wait"):
                pending.ready.synchronize()
        return [Progress(row[4 : 4 + row[0]], row[1], row[2], row[3]) for row in pending.packed.tolist()]

    def _tensor(self, values: Sequence[object]) -> Tensor:
        given = torch.tensor(values)
        return given.pin_memory().to(self.device, non_blocking=True) if self.fused else given


def _row_fields(request: Request) -> tuple[list[int], list[float]]:
    """What a new row holds in `state.INTS` and `state.REALS`."""
    p, length = request.params, len(request.tokens)
    threshold, quota, entropy_bound = policy_fields(p, request.width)
    ints = {
        "prompt": len(request.prompt), "length": length, "seen": length, "written": request.written,
        "limit": request.limit, "done": RUNNING, "forwards": request.forwards, "width": request.width,
        "ahead_count": 0, "top_k": p.top_k, "seed": p.seed, "quota": quota,
    }  # fmt: skip
    reals = {
        "temperature": p.temperature, "top_p": p.top_p, "presence": p.presence_penalty,
        "frequency": p.frequency_penalty, "repetition": p.repetition_penalty, "threshold": threshold,
        "entropy_bound": entropy_bound, "edit_below": edit_below(p),
    }  # fmt: skip
    return [ints[name] for name in INTS], [reals[name] for name in REALS]


def _stop_row(request: Request) -> list[int]:
    ids = sorted(request.eos)
    return ids + [NO_TOKEN] * (MAX_STOP_IDS - len(ids))
