"""A server that speaks the wire by heart: the playground's other side where a test says what comes and when."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from openmercury.server.playground import router

MASK = "░"
CODE = '''def merge(left, right):
    """Merge two sorted lists into one."""
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]  # at most one is not empty
'''
ANSWER = f"""Both lists are read once, so `merge` takes **linear time**:

```python
{CODE}```

It keeps equal items in order."""
EVIL = "<img src=x onerror=\"document.title='owned'\"> 🜛 <script>document.title='owned'</script>"
BLOCK = 48  # characters denoised together


def snapshots(text: str, mode: str) -> list[dict[str, Any]]:
    """What each forward leaves: content, settled characters, tokens (a third of the characters) and forwards."""
    found: list[dict[str, Any]] = []

    def add(content: str, settled: int) -> None:
        found.append({"content": content, "settled": settled, "tokens": settled // 3, "forwards": len(found) + 1})

    if mode == "ar":
        for end in range(3, len(text) + 3, 3):
            add(text[:end], min(end, len(text)))
        return found
    dice = random.Random(0)
    for start in range(0, len(text), BLOCK):
        block = text[start : start + BLOCK]
        hidden = set(range(0, len(block)))
        while hidden:
            add(text[:start] + "".join(MASK if i in hidden else c for i, c in enumerate(block)), start)
            hidden -= set(dice.sample(sorted(hidden), min(len(hidden), 14)))
    add(text, len(text))
    return found


class Stub:
    """The application, what it was asked, and how many streams ended before they were read to the end."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url, self.aborted = "", 0
        self.held = False  # an answer goes no further than its first step
        self.app = FastAPI()
        self.app.include_router(router)
        self.app.add_api_route("/v1/models", self.models)
        self.app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        self.app.add_api_route("/v1/fim/completions", self.fim, methods=["POST"])

    async def models(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization"))
        return JSONResponse({"data": [{"id": "openmercury-nano"}, {"id": "tiny"}]})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization"))
        said = body["messages"][-1]["content"]
        if said == "refuse":
            error = {
                "message": "Incorrect API key provided",
                "type": "authentication_error",
                "param": None,
                "code": None,
            }
            return JSONResponse({"error": error}, 401)
        if said == "proxy":
            return Response("<h1>Bad gateway</h1>", 502, media_type="text/html")
        return StreamingResponse(self._chat(body, said), media_type="text/event-stream")

    async def _chat(self, body: dict[str, Any], said: str) -> AsyncIterator[str]:
        text = EVIL if said == "evil" else ANSWER
        pause = 0.2 if said == "slow" else {"ar": 0.006, "diffusion": 0.012}.get(body["mode"], 0.01)
        steps = snapshots(text, body["mode"])
        try:
            yield ": keep-alive\n\n"
            for number, step in enumerate(steps):
                if said == "break" and number == 9:
                    yield _event(
                        {
                            "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}],
                            "error": {"message": "The engine was closed."},
                        }
                    )
                    return
                meta = {
                    "diffusion_progress": step["settled"] / len(text),
                    "diffusion_content": True,
                    "settled_characters": step["settled"],
                }
                meta |= {name: step[name] for name in ("tokens", "forwards")}
                yield _event({"choices": [{"index": 0, "delta": {"content": step["content"]}}], "diffusion_meta": meta})
                await self._pause(pause)
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            yield _event({"choices": [], "usage": _usage(steps)})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted += 1
            raise

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        while self.held:
            await asyncio.sleep(0.005)

    async def fim(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        return StreamingResponse(self._fim(), media_type="text/event-stream")

    async def _fim(self) -> AsyncIterator[str]:
        """Plain chunks, which append."""
        for piece in ("sum", "(val", "ues)"):
            yield _event({"object": "text_completion", "choices": [{"index": 0, "text": piece}]})
            await self._pause(0.01)
        yield _event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
        yield _event({"choices": [], "usage": {"completion_tokens": 4, "forwards": 2, "tokens_per_forward": 2.0}})
        yield "data: [DONE]\n\n"


def _usage(steps: list[dict[str, Any]]) -> dict[str, Any]:
    tokens, forwards = steps[-1]["tokens"], steps[-1]["forwards"]
    return {"completion_tokens": tokens, "forwards": forwards, "tokens_per_forward": tokens / forwards}


def _event(data: dict[str, Any]) -> str:
    return (
        f"data: {json.dumps({'id': 'chatcmpl-1', 'object': 'chat.completion.chunk', **data}, ensure_ascii=False)}\n\n"
    )
