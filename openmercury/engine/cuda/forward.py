"""One forward of a batch on CUDA, from what its rows hold to what they gained: plan, network, head, apply.

Nothing here waits for the device or allocates by what it finds there, so a step can be captured as a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openmercury.diffusion.sample import Choice, Penalties, RowParams, Sampling
from openmercury.engine.cache import PagedCache
from openmercury.engine.cuda import steps
from openmercury.engine.cuda.chain import Tables, link
from openmercury.engine.cuda.head import Wanted, choose_fused
from openmercury.engine.cuda.network import FusedTransformer
from openmercury.engine.cuda.products import Matrix
from openmercury.engine.head import Chosen, Head
from openmercury.engine.modes import Shape
from openmercury.engine.state import Slots
from openmercury.engine.stats import EngineStats, timed_head
from openmercury.model.transformer import Transformer

ONE_PASS = 160  # predictions up to which the head reads all groups at once, instead of its weights twice


class CudaForward:
    """Runs forwards over slots; rows are slot numbers [R]."""

    def __init__(
        self,
        model: Transformer,
        cache: PagedCache,
        slots: Slots,
        mask_id: int,
        head_rows: int,
        tables: Tables | None,
    ) -> None:
        self.model, self.cache, self.slots, self.mask_id, self.head_rows = model, cache, slots, mask_id, head_rows
        self.network, self.head = FusedTransformer(model, cache), Matrix.of(model.head)
        self.tables = tables
        self.stats: EngineStats | None = None

    def prefill(self, rows_R: Tensor, start_R: Tensor, count_R: Tensor, columns: int) -> None:
        """Write `count_R` committed tokens from `start_R` on to the cache."""
        plan = steps.plan(
            self.model, self.slots, rows_R, columns, self.mask_id, self.cache.page_size, (start_R, count_R)
        )
        self.network(plan.stream, plan.layout, None)
        self.slots.written[rows_R] = start_R + count_R

    def decode(self, rows_R: Tensor, shape: Shape, sampling: Sampling, allowed_RCW: Tensor | None = None) -> None:
        """One forward of rows that share a shape; their clean columns choose what is allowed."""
        plan = steps.plan(self.model, self.slots, rows_R, shape, self.mask_id, self.cache.page_size)
        x_ND = self.network(plan.stream, plan.layout, plan.gate_N if shape.noisy else None)
        hidden_ND = self.network.norm(x_ND, self.model.norm.weight)
        penalties = None
        if shape.penalised:
            end_RQ = plan.layout.end_N.view(len(rows_R), -1).long()
            penalties = self.slots.penalties(rows_R, end_RQ, self.model.config.vocab_size)
        allowed_MW = None if allowed_RCW is None else allowed_RCW.flatten(0, 1)
        if shape.mode == "ar":
            token_R = self._choose(hidden_ND, plan, None, sampling, penalties, allowed_MW).choice.token_M
            steps.apply_ar(self.slots, rows_R, token_R)
        elif shape.mode == "diffusion":
            tied = self.tables is not None
            chosen = self._choose(hidden_ND, plan, None, sampling, penalties, allowed_MW, statistics=True, listed=tied)
            choice = chosen.choice
            if self.tables is not None:
                choice = self._link_block(rows_R, hidden_ND, chosen, shape.width)
            steps.apply_diffusion(self.slots, rows_R, shape.width, choice, self.mask_id)
        else:
            self._verify(hidden_ND, plan, rows_R, shape, sampling, penalties, allowed_MW)

    def _verify(
        self,
        hidden_ND: Tensor,
        plan: steps.Planned,
        rows_R: Tensor,
        shape: Shape,
        sampling: Sampling,
        penalties: Penalties | None,
        allowed_MW: Tensor | None,
    ) -> None:
        """Choices of all columns at once; or, where they are many or only the clean ones are bound to what is allowed,
        of these and then of the one group that matters."""
        rows, columns, clean = len(rows_R), plan.layout.columns, shape.width + 1
        if shape.groups == "none":
            token_RC = self._choose(hidden_ND, plan, None, sampling, penalties).choice.token_M.view(rows, clean)
            steps.apply_verified(self.slots, rows_R, shape, token_RC, token_RC, token_RC, picked=False)
            return
        tied, statistics = self.tables is not None, shape.likely
        at_once = allowed_MW is None and (shape.groups == "last" or rows * columns <= ONE_PASS)
        if at_once:
            chosen = self._choose(hidden_ND, plan, None, sampling, penalties, statistics=statistics, listed=tied)
            token_RQ, sure_RQ = (f.view(rows, columns) for f in (chosen.choice.token_M, chosen.choice.confidence_M))
            token_RC = token_RQ[:, :clean]
            if not tied:
                groups = token_RQ[:, clean:], sure_RQ[:, clean:]
                steps.apply_verified(self.slots, rows_R, shape, token_RC, *groups, picked=False)
                return
        else:
            column = torch.arange(clean, dtype=torch.int32, device=rows_R.device)
            first = torch.arange(0, rows * columns, columns, dtype=torch.int32, device=rows_R.device)
            index_M = (first[:, None] + column).flatten()
            token_RC = self._choose(hidden_ND, plan, index_M, sampling, penalties, allowed_MW).choice.token_M
            token_RC = token_RC.view(rows, clean)
        kept_R, index_M = steps.accept(self.slots, rows_R, shape, token_RC)
        if not at_once:
            chosen = self._choose(hidden_ND, plan, index_M, sampling, penalties, statistics=statistics, listed=tied)
        drafted, sure = (f.view(rows, -1) for f in (chosen.choice.token_M, chosen.choice.confidence_M))
        if self.tables is not None:
            drafted, sure = link(
                self.tables, self.slots, rows_R, token_RC, kept_R, hidden_ND, index_M, chosen, shape.width,
                self.mask_id, indexed=at_once,
            )  # fmt: skip
        steps.apply_verified(self.slots, rows_R, shape, token_RC, drafted, sure, picked=True)

    def _link_block(self, rows_R: Tensor, hidden_ND: Tensor, chosen: Chosen, width: int) -> Choice:
        """The choice of a denoising step, where noisy columns know the token before them."""
        assert self.tables is not None
        token_RK = chosen.choice.token_M.view(len(rows_R), width)
        index_M = torch.arange(len(hidden_ND), dtype=torch.int32, device=rows_R.device)
        drafted, sure = link(
            self.tables, self.slots, rows_R, token_RK, None, hidden_ND, index_M, chosen, width, self.mask_id,
            indexed=False,
        )  # fmt: skip
        return chosen.choice._replace(token_M=drafted.flatten(), confidence_M=sure.flatten())

    def _choose(
        self,
        hidden_ND: Tensor,
        plan: steps.Planned,
        index_M: Tensor | None,
        sampling: Sampling,
        penalties: Penalties | None,
        allowed_MW: Tensor | None = None,
        *,
        statistics: bool = False,
        listed: bool = False,
    ) -> Chosen:
        with timed_head(self.stats):
            if sampling == "truncated" or penalties is not None or allowed_MW is not None:
                return self._choose_stored(
                    hidden_ND, plan, index_M, sampling, penalties, allowed_MW, statistics=statistics, listed=listed
                )
            slots, layout = self.slots, plan.layout
            wanted = Wanted(
                index_M,
                layout.rows_R,
                layout.columns,
                layout.position_N,
                plan.proposal_N,
                slots.temperature,
                slots.seed,
            )
            sample = sampling == "sampled"
            return choose_fused(
                hidden_ND, self.head, wanted, self.mask_id, sample=sample, statistics=statistics, listed=listed
            )

    def _choose_stored(
        self,
        hidden_ND: Tensor,
        plan: steps.Planned,
        index_M: Tensor | None,
        sampling: Sampling,
        penalties: Penalties | None,
        allowed_MW: Tensor | None,
        *,
        statistics: bool,
        listed: bool,
    ) -> Chosen:
        """Top-k and top-p need a row's logits in order, penalties and grammars change them: here they are stored,
        `head_rows` rows at a time."""
        slots, layout, device = self.slots, plan.layout, hidden_ND.device
        n = torch.arange(len(hidden_ND), device=device) if index_M is None else index_M.long()
        row = layout.rows_R[n // layout.columns]
        params = RowParams(
            slots.temperature[row], slots.top_k[row], slots.top_p[row], slots.seed[row],
            layout.position_N[n].long() + 1, plan.proposal_N[n].long(),
        )  # fmt: skip
        counted = None if penalties is None else penalties.rows(n)
        stored = Head(self.model, self.head_rows, sampling, statistics)
        wanted_N = torch.ones_like(n, dtype=torch.bool) if listed else None
        return stored.choose_rows(hidden_ND[n], params, counted, allowed_MW, wanted_N)
