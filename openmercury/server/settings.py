"""Settings of a deployment: environment variables `OPENMERCURY_…`, which the options of `serve` go before. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from openmercury.engine.params import Mode

ALIASES = (
    "mercury", "mercury-2", "mercury-2.5", "mercury-3", "mercury-coder", "mercury-coder-small",
    "mercury-coder-small-beta", "mercury-edit", "mercury-edit-2", "mercury-decide",
    "mercury-editor-mini-experimental", "mercury-editor-small-experimental",
)  # fmt: skip
# Letting more stand than `ar` would write gains no forwards with the shipped model (docs/evaluation.md), so the lowest
# efforts are `diffusion` as it is. `medium` takes the server's own mode.
DENOISED: dict[str, Any] = {"mode": "diffusion"}
EFFORTS: dict[str, dict[str, Any]] = {
    "none": DENOISED, "minimal": DENOISED, "instant": DENOISED, "low": DENOISED, "medium": {},
    "high": {"mode": "verified"}, "xhigh": {"mode": "verified"},
}  # fmt: skip

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ServerSettings(BaseSettings):
    """What one server allows and assumes. Limits per minute are for keys that name none of their own; None is none."""

    model_config = SettingsConfigDict(env_prefix="OPENMERCURY_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    aliases: tuple[str, ...] = ALIASES
    mode: Mode = "auto"
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Positive = 16384
    efforts: dict[str, dict[str, Any]] = EFFORTS
    keys: Path | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    body_bytes: Positive = 8 * 2**20
    body_seconds: Seconds = 30.0
    send_seconds: Seconds = 60.0
    max_concurrent: Positive = 512
    max_concurrent_per_key: Positive | None = None
    max_waiting: Positive = 256
    max_choices: Positive = 16
    deadline: Seconds = 600.0
    engine_process: bool | Literal["auto"] = "auto"  # has the engine a process of its own? see `remote.apart`
    drain_seconds: Seconds = 30.0
    keep_alive_seconds: Seconds = 10.0
    chunk_seconds: Annotated[float, Field(ge=0)] = 0.03
    snapshot_seconds: Annotated[float, Field(ge=0)] = 0.05
    cors_origins: tuple[str, ...] = ()
    feedback: Path | None = None  # folder for what editors report of suggestions; None: it is dropped
    log_format: Literal["text", "json"] = "json"
