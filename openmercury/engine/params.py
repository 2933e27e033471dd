"""What one request asks of the decoder. No torch here: the command line imports this to print its help."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from openmercury.config import Frozen

DecodeMode = Literal["diffusion", "verified", "ar"]
Mode = Literal[DecodeMode, "auto"]


class SamplingParams(Frozen):
    """Per-request settings; every field is honoured in every mode it applies to, or refused.

    Mode `auto` writes the text of `ar` in whatever forwards are fastest under the load at hand.

    `threshold`, `steps` and `entropy_bound` choose the unmask policy of `diffusion` (the default is the confidence
    threshold). `edit_below`: a settled token is replaced when the clean side finds it less than this many times as
    likely as its own choice; 0 never edits, 1 lets only greedy AR text stand. The other modes refuse all four, since
    nothing would read them.

    `presence_penalty` and `frequency_penalty` count the answer so far (OpenAI), `repetition_penalty` prompt and answer
    (CTRL, arXiv 1909.05858). `deadline` is in seconds from submission; an answer it cuts off is given as it stands.
    """

    mode: Mode = "verified"
    max_tokens: Annotated[int, Field(ge=1)] = 512
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    threshold: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    entropy_bound: Annotated[float, Field(ge=0.0)] | None = None
    edit_below: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    block_size: Annotated[int, Field(ge=1, le=64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0  # far outside, float32 logits overflow
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    ignore_eos: bool = False
    deadline: Annotated[float, Field(gt=0.0)] | None = None

    @model_validator(mode="after")
    def _one_policy(self) -> SamplingParams:
        chosen = [name for name in ("threshold", "steps", "entropy_bound") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other: give one unmask policy")
        if self.edit_below is not None:
            chosen.append("edit_below")
        if chosen and self.mode != "diffusion":
            raise ValueError(f"{chosen[0]} only acts in mode diffusion: drop it or set mode=diffusion")
        if self.block_size is not None and self.mode in ("ar", "auto"):
            raise ValueError("block_size only acts in modes diffusion and verified: drop it or change the mode")
        return self
