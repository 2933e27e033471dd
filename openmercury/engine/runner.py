"""Spans to tensors, one forward, choices back: the only part of the engine that touches the network.

Rows are padded to the longest span. Logits are computed for wanted rows only, a slice at a time, so that a wide batch
never holds its whole [rows × vocabulary] matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openmercury.diffusion.sample import Choice, RowParams, choose
from openmercury.diffusion.unmask import Policy, accept
from openmercury.engine.config import DEFAULT_THRESHOLD, EngineConfig
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import Request, Span
from openmercury.model.attention import CachedAttend, KVCache
from openmercury.model.transformer import Transformer


class ForwardBatch(NamedTuple):
    """One forward: [R, N] tensors, and the flat indices of wanted rows [M] with the request each belongs to."""

    ids_RN: Tensor
    position_RN: Tensor
    end_RN: Tensor
    group_RN: Tensor
    padding_RN: Tensor
    want_M: Tensor
    owner_M: Tensor
    used: int


def build_batch(spans: list[Span], device: torch.device) -> ForwardBatch:
    """Pad spans to one length. Filler sits at position 0 as clean text, sees slot 0 and is written to the last slot."""
    n = max(len(span) for span in spans)

    def stack(name: str, filler: int) -> Tensor:
        rows = [getattr(span, name) + [filler] * (n - len(span)) for span in spans]
        return torch.tensor(rows, device=device)

    used = 1 + max(p for span in spans for p, g in zip(span.position, span.group, strict=True) if g < 0)
    want = [row * n + index for row, span in enumerate(spans) for index in span.want]
    owner = [row for row, span in enumerate(spans) for _ in span.want]
    length = torch.tensor([len(span) for span in spans], device=device)
    return ForwardBatch(
        stack("ids", 0),
        stack("position", 0),
        stack("end", 1),
        stack("group", -1),
        torch.arange(n, device=device)[None] >= length[:, None],
        torch.tensor(want, dtype=torch.long, device=device),
        torch.tensor(owner, dtype=torch.long, device=device),
        used,
    )


def policy_of(params: list[SamplingParams], widths: list[int], device: torch.device) -> Policy:
    """Unmask policies of the requests as tensors."""
    threshold, quota, bound = [], [], []
    for one, width in zip(params, widths, strict=True):
        default = DEFAULT_THRESHOLD if one.steps is None and one.entropy_bound is None else 2.0
        threshold.append(default if one.threshold is None else one.threshold)
        quota.append(0 if one.steps is None else -(-width // one.steps))
        bound.append(-1.0 if one.entropy_bound is None else one.entropy_bound)
    return Policy(
        torch.tensor(threshold, device=device),
        torch.tensor(quota, device=device),
        torch.tensor(bound, device=device),
    )


class Runner:
    """Owns the network, the cache and the per-request parameter tensors of the running batch."""

    def __init__(self, model: Transformer, config: EngineConfig) -> None:
        self.model = model
        self.config = config
        self.device = model.embedding.weight.device
        self.dtype = model.embedding.weight.dtype
        facts = model.config.diffusion
        self.mask_id = -1 if facts is None else facts.mask_id

    def start(self, requests: list[Request]) -> None:
        """Set up cache and parameters for a batch of requests."""
        longest = max(len(request.tokens) for request in requests)
        self.cache = KVCache(self.model.config, len(requests), longest + 128, dtype=self.dtype, device=self.device)
        params = [request.params for request in requests]
        self.diffusing = any(one.mode == "diffusion" for one in params)
        self.policy = policy_of(params, [request.width for request in requests], self.device)
        self.sampling = RowParams(
            torch.tensor([one.temperature for one in params], device=self.device),
            torch.tensor([one.top_k for one in params], device=self.device),
            torch.tensor([one.top_p for one in params], device=self.device),
            torch.tensor([one.seed for one in params], device=self.device),
            torch.zeros(len(params), dtype=torch.long, device=self.device),
        )

    def keep(self, rows: list[int]) -> None:
        """Drop finished requests."""
        index = torch.tensor(rows, device=self.device)
        self.cache.keep(index)
        self.policy = Policy(*(field[index] for field in self.policy))
        self.sampling = self.sampling.rows(index)

    @torch.inference_mode()
    def forward(self, spans: list[Span]) -> tuple[list[list[int]], list[list[bool]]]:
        """Run one forward; returns the chosen tokens and policy verdicts of the wanted rows, per span."""
        batch = build_batch(spans, self.device)
        self._reserve(batch)
        attend = CachedAttend(self.cache, batch.position_RN, batch.end_RN, batch.group_RN, batch.padding_RN, batch.used)
        noisy_RN = batch.group_RN >= 0
        noisy = noisy_RN if bool(noisy_RN.any()) else None
        hidden = self.model(batch.ids_RN, batch.position_RN, attend, noisy)
        if not len(batch.want_M):
            return [[] for _ in spans], [[] for _ in spans]
        choice = self._choose(hidden.flatten(0, 1)[batch.want_M], batch)
        taken_M = self._accept(choice, spans, batch) if self.diffusing else torch.ones_like(choice.token_M) > 0
        counts = [len(span.want) for span in spans]
        tokens = [part.tolist() for part in choice.token_M.cpu().split(counts)]
        return tokens, [part.tolist() for part in taken_M.cpu().split(counts)]

    def _reserve(self, batch: ForwardBatch) -> None:
        needed = batch.used + batch.ids_RN.shape[1]
        if needed > self.cache.capacity:
            self.cache.grow(needed + 128)

    def _choose(self, hidden_MD: Tensor, batch: ForwardBatch) -> Choice:
        position_M = batch.position_RN.flatten()[batch.want_M] + 1
        params = self.sampling.rows(batch.owner_M)._replace(position_M=position_M)
        parts = []
        for begin in range(0, len(hidden_MD), self.config.head_rows):
            rows = slice(begin, begin + self.config.head_rows)
            parts.append(choose(self.model.logits(hidden_MD[rows]), params.rows(rows), statistics=self.diffusing))
        return Choice(*(torch.cat(field) for field in zip(*parts, strict=True)))

    def _accept(self, choice: Choice, spans: list[Span], batch: ForwardBatch) -> Tensor:
        """Scatter the wanted rows into [R, K], ask the policy, gather back."""
        counts = torch.tensor([len(span.want) for span in spans], device=self.device)
        column_M = torch.arange(len(batch.want_M), device=self.device) - (counts.cumsum(0) - counts)[batch.owner_M]
        shape = (len(spans), int(counts.max()))
        confidence = choice.confidence_M.new_zeros(shape)
        entropy = choice.entropy_M.new_full(shape, torch.inf)
        masked = torch.zeros(shape, dtype=torch.bool, device=self.device)
        at = (batch.owner_M, column_M)
        confidence[at], entropy[at] = choice.confidence_M, choice.entropy_M
        # Wanted row c chooses block position c, which noisy row c + 1 of the group holds; column 0 is always open.
        held = batch.ids_RN.flatten()[(batch.want_M + 1).clamp(max=batch.ids_RN.numel() - 1)]
        masked[at] = (held == self.mask_id) | (column_M == 0)
        return accept(confidence, entropy, masked, self.policy)[at]
