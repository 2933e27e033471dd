"""What a request may hold. A field is honoured or refused by name; from `user` on they are the client's own.

Engine settings (`mode`, `threshold`, …) stand at the top level, or in an object under the literal key `extra_body`, as
Mercury's client sends them. Values are taken as their JSON type says: "0.5" is no number, and 13.0 is a whole one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from openmercury.engine.params import Mode
from openmercury.server.structured import StructuredFields

Effort = Literal["none", "minimal", "instant", "low", "medium", "high", "xhigh"]
MAX_STOPS = 16
Stops = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given, json_schema_input_type=str | list[str]),
]
LARGEST = 2**31
# JSON has one kind of number, so 13.0 is 13; 13.5 is refused.
Whole = Annotated[
    int, BeforeValidator(lambda given: int(given) if isinstance(given, float) and given.is_integer() else given)
]


class StreamOptions(BaseModel):
    """OpenAI's object; obfuscation pads chunks and is never wanted here."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Sampled(BaseModel):
    """What every endpoint that generates understands."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    max_tokens: Annotated[Whole, Field(ge=1, le=LARGEST)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=1000)] | None = Field(None, description="-1: all; 0 is refused")
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    stop: Stops | None = None
    n: Annotated[Whole, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    diffusing: bool | None = Field(None, description="stream snapshots of the whole text, drafts included")
    realtime: bool | None = Field(None, description="show every forward's tokens at once; smaller blocks in diffusion")
    reasoning_effort: Effort | None = Field(None, description="chooses settings of the decoder; mode goes before it")
    logit_bias: dict[str, float] | None = None

    mode: Mode | None = None
    threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    steps: Annotated[Whole, Field(ge=1, le=LARGEST)] | None = None
    entropy_bound: Annotated[float, Field(ge=0)] | None = None
    edit_below: Annotated[float, Field(ge=0, le=1)] | None = None
    block_size: Annotated[Whole, Field(ge=1, le=64)] | None = None
    ignore_eos: bool | None = None
    deadline: Annotated[float, Field(gt=0)] | None = Field(
        None, description="seconds; what is there then is the answer"
    )
    extra_body: dict[str, Any] | None = Field(None, description="more fields of this object, as Mercury's client sends")

    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _merged(cls, given: Any) -> Any:
        """Fields of `extra_body` beside the others."""
        if not isinstance(given, dict) or not isinstance(given.get("extra_body"), dict):
            return given
        extra = given["extra_body"]
        twice = [name for name in extra if name in given and given[name] != extra[name]]
        if twice:
            raise ValueError(f"{twice[0]} stands in extra_body and beside it, and they differ: give it once")
        return {**{name: value for name, value in given.items() if name != "extra_body"}, **extra}

    @model_validator(mode="after")
    def _sound(self) -> Sampled:
        if self.top_k == 0:
            raise ValueError("top_k is -1 (all) or at least 1, got 0")
        if self.logit_bias:
            raise ValueError("logit_bias is not supported: leave it out")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true only")
        if self.diffusing and not self.stream:
            raise ValueError("diffusing goes with stream: true only")
        return self

    @property
    def include_usage(self) -> bool:
        """Is a usage chunk wanted at the end of the stream?"""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(BaseModel):
    """A part of a message's content; `type` is checked when it is read, so that others are refused by name."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = None


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class ChatRequest(Sampled, StructuredFields):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[Whole, Field(ge=1, le=LARGEST)] | None = None
    reasoning_summary: bool | None = None
    reasoning_summary_wait: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    nextEdit: bool | None = Field(None, description="a label of the editor Continue; changes nothing")


class CompletionRequest(Sampled):
    """POST /v1/completions: raw text to continue, or with `suffix` the gap between two texts."""

    prompt: str | list[int] | list[str] | list[list[int]]
    suffix: str | None = None
    echo: bool | None = None
    best_of: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None


class FimRequest(Sampled):
    """POST /v1/fim/completions: the code between `prompt` and `suffix`."""

    prompt: str
    suffix: str | None = None
