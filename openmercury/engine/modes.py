"""The three ways to decode, each as two functions: what a request asks of a forward, and what it learns from one.

Predictions come shifted: row of position i chooses the token of position i + 1. So the last committed token gives the
next one exactly, and a noisy group of g positions that starts at s drafts the tokens of s + 1 ‥ s + g.
"""

from __future__ import annotations

from typing import Protocol

from openmercury.engine.config import EngineConfig
from openmercury.engine.request import Request, Span


class Prediction(Protocol):
    """Choices for the wanted rows of one span, in order."""

    token: list[int]
    accepted: list[bool]  # by the unmask policy; used by `diffusion` only


def plan(request: Request, config: EngineConfig, mask_id: int) -> Span:
    """The span of one request for the next forward; without wanted rows it only fills the cache."""
    span = Span()
    pending = request.tokens[request.written :]
    if len(pending) > config.prefill_chunk:
        span.add_clean(pending[: config.prefill_chunk], request.written)
        return span
    span.add_clean(pending, request.written)
    span.want.append(len(span) - 1)
    if request.params.mode == "diffusion":
        _plan_block(request, span, mask_id)
    elif request.params.mode == "verified":
        _plan_drafts(request, span, config, mask_id)
    return span


def _plan_block(request: Request, span: Span, mask_id: int) -> None:
    width = min(request.width, request.remaining)
    request.block = (request.block + [mask_id] * width)[:width]
    first = len(span)
    span.add_group(request.block, len(request.tokens), 0)
    span.want += range(first, first + width - 1)


def _plan_drafts(request: Request, span: Span, config: EngineConfig, mask_id: int) -> None:
    base, drafts = len(request.tokens), request.drafts
    span.want += range(len(span), len(span) + len(drafts))
    span.add_clean(drafts, base)
    every = config.draft_groups == "all" or not drafts
    for accepted in range(len(drafts) + 1) if every else [len(drafts)]:
        # Behind `accepted` drafts comes one exact token; drafts beyond the limit are not worth their positions.
        width = min(request.width, request.remaining - accepted - 1)
        if width > 0:
            first = len(span)
            span.add_group([mask_id] * width, base + accepted, accepted)
            span.want += range(first, first + width)


def apply(request: Request, span: Span, token: list[int], accepted: list[bool], mask_id: int) -> None:
    """Take the choices of a finished forward into the request."""
    if not span.want:
        request.written += len(span)
        return
    request.forwards += 1
    mode = request.params.mode
    if mode == "diffusion":
        _apply_block(request, token, accepted, mask_id)
    elif mode == "verified":
        _apply_drafts(request, span, token)
    else:
        request.written = len(request.tokens)
        request.commit(token[:1])


def _apply_block(request: Request, token: list[int], accepted: list[bool], mask_id: int) -> None:
    request.written = len(request.tokens)
    for index, (chosen, take) in enumerate(zip(token, accepted, strict=True)):
        if take:
            request.block[index] = chosen
    settled = request.block.index(mask_id) if mask_id in request.block else len(request.block)
    request.commit(request.block[:settled])
    request.block = request.block[settled:]


def _apply_drafts(request: Request, span: Span, token: list[int]) -> None:
    drafts, chosen = request.drafts, token[: len(request.drafts) + 1]
    kept = 0
    while kept < len(drafts) and drafts[kept] == chosen[kept]:
        kept += 1
    request.written = len(request.tokens) + kept
    request.drafts = _next_drafts(request, span, token[len(chosen) :], kept)
    request.commit(chosen[: kept + 1])
    request.written = min(request.written, len(request.tokens) - 1)


def _next_drafts(request: Request, span: Span, drafted: list[int], kept: int) -> list[int]:
    """Choices of the group that stands behind `kept` drafts, if there is one."""
    groups = [span.group[row] for row in span.want[len(request.drafts) + 1 :]]
    return [token for token, group in zip(drafted, groups, strict=True) if group == kept]
