"""POST /feedback: what became of a suggestion, as editors report it. They send no key and wait for nothing."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from openmercury.log import get_logger

router = APIRouter()

FILE = "feedback.jsonl"
MOST_BYTES = 64 * 2**20  # whoever reaches the server may write here
Name = Annotated[str, Field(max_length=200)]


class Feedback(BaseModel):
    """`request_id` is the id of the response that held the suggestion. What else editors may add is not kept."""

    model_config = ConfigDict(strict=True, extra="ignore")

    request_id: Name
    user_action: Literal["accept", "reject", "ignore"]
    provider_name: Name | None = None
    provider_version: Name | None = None


@router.post("/feedback")
async def feedback(request: Request, body: Feedback) -> dict[str, str]:
    """Keep it in the folder of the settings; without one it is dropped."""
    folder: Path | None = request.app.state.settings.feedback
    if folder is not None:
        await asyncio.to_thread(_append, folder / FILE, {"time": time.time(), **body.model_dump()})
    return {"status": "ok"}


def _append(path: Path, entry: dict[str, Any]) -> None:
    """One line by one write, so that lines of many threads do not mix."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            if file.seek(0, os.SEEK_END) < MOST_BYTES:
                file.write(json.dumps(entry).encode() + b"\n")
    except OSError as error:
        get_logger().warning("feedback cannot be written (%s): check the folder", error)
