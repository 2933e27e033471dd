"""Settings of the engine; the defaults suit one H100, `for_device` adapts them. No torch at module level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from openmercury.config import Frozen
from openmercury.engine.widths import MOST_GROUPS, Groups, best_block, best_drafts

DraftGroups = Literal["all", "last"] | Annotated[int, Field(ge=1, le=MOST_GROUPS)]
DEFAULT_THRESHOLD = 0.15
DEFAULT_EDIT_BELOW = 1.0
ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def bucket(size: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `size`, or `size` itself beyond them."""
    return next((each for each in buckets if each >= size), size)


class EngineConfig(Frozen):
    """How forwards are composed and how much runs at once.

    `draft_width` is how many tokens `verified` drafts at a time. `draft_groups` says behind which accepted lengths of
    the drafts under verification the next draft is prepared in the same forward: "all" (the fewest forwards; pays
    where wide forwards are nearly free), "last" (behind full acceptance only; else a forward of its own drafts), or a
    number: behind so many lengths at which the drafts' own confidence says that they will be cut off.
    `block_limit` narrows the blocks of `diffusion` below the checkpoint's block size where each position costs.

    Prompts are read in chunks of up to `prefill_chunk` tokens, `prefill_tokens` positions a step, padding included.

    `cache_tokens` bounds the KV cache; None takes `cache_share` of the free GPU memory, or what 4 full contexts need
    on a CPU, where untouched pages cost nothing. Requests are refused while `max_waiting` wait for a slot (None:
    never). `steps_per_sync` forwards run before the host looks at the results: more is faster in bulk, one shows tokens
    soonest; "auto" takes more only where many rows' forwards are short.

    `auto_drafts` are the widths and groups that mode `auto` chooses from, besides `ar`. On CUDA each costs a graph for
    every number of rows where it is tried, so there are few: wide for one row, narrow for many.
    """

    draft_width: Annotated[int, Field(ge=1, le=64)] = 13
    draft_groups: DraftGroups = 4
    auto_drafts: tuple[tuple[Annotated[int, Field(ge=1, le=64)], DraftGroups], ...] = (
        (13, 4), (12, 4), (7, 3), (7, 2), (3, "last"), (5, "last"), (7, "last"),
    )  # fmt: skip
    block_limit: Annotated[int, Field(ge=1, le=64)] = 64
    max_requests: Annotated[int, Field(ge=1)] = 128
    max_waiting: Annotated[int, Field(ge=0)] | None = None
    prefill_tokens: Annotated[int, Field(ge=1)] = 8192
    prefill_chunk: Annotated[int, Field(ge=1)] = 1024
    head_rows: Annotated[int, Field(ge=1)] = 4096
    page_size: Annotated[int, Field(ge=1)] = 16
    cache_tokens: Annotated[int, Field(ge=1)] | None = None
    cache_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.8
    prefix_cache: bool = True
    steps_per_sync: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    graphs: bool = True

    @classmethod
    def for_device(cls, device: str, costs: Mapping[int, float] | None = None) -> EngineConfig:
        """Settings for "cuda", where wide forwards are nearly free, or "cpu", where each position costs.

        `costs` are the milliseconds of a CPU's forwards by rows: drafts and blocks are as wide as pays there. Without
        them they are narrow, which no machine punishes much.
        """
        if device == "cuda":
            return cls()
        shapes: tuple[tuple[int, Groups], ...] = ((3, "all"), (3, "last"), (5, "last"), (7, "last"))
        narrow = cls(
            draft_width=3, draft_groups="all", block_limit=8, max_requests=32, prefill_tokens=512, auto_drafts=shapes
        )
        if costs is None:
            return narrow
        width, groups, _ = best_drafts(costs)
        fitting = {
            "draft_width": width,
            "draft_groups": groups,
            "block_limit": best_block(costs),
            "auto_drafts": tuple(dict.fromkeys(((width, groups), *shapes))),
        }
        return narrow.model_copy(update=fitting)
