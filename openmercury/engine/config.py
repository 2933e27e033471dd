"""Settings of the engine; the defaults suit one H100, `for_device` adapts them. No torch at module level."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from openmercury.config import Frozen

DEFAULT_THRESHOLD = 0.9


class EngineConfig(Frozen):
    """How forwards are composed.

    `draft_width` is how many tokens `verified` drafts at a time. `draft_groups` says behind which accepted lengths of
    the drafts under verification the next draft is prepared in the same forward: "all" (the fewest forwards; pays
    where wide forwards are nearly free) or "last" (behind full acceptance only; else a forward of its own drafts).
    `block_limit` narrows the blocks of `diffusion` below the checkpoint's block size where each position costs.
    """

    draft_width: Annotated[int, Field(ge=1, le=64)] = 7
    draft_groups: Literal["all", "last"] = "all"
    block_limit: Annotated[int, Field(ge=1, le=64)] = 64
    prefill_chunk: Annotated[int, Field(ge=1)] = 512
    head_rows: Annotated[int, Field(ge=1)] = 2048

    @classmethod
    def for_device(cls, device: str) -> EngineConfig:
        """Settings for "cuda", where wide forwards are nearly free, or "cpu", where each position costs."""
        return cls() if device == "cuda" else cls(draft_width=3, block_limit=8)
