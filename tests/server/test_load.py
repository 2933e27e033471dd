"""64 clients at once, a third of which leave whenever they like: nothing is lost, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time

import httpx
import pytest

from openmercury.engine.config import EngineConfig
from tests.server.made import MODEL, Served, finished, llm, serving

CLIENTS, LEAVE = 64, 0.3
SECONDS = float(os.environ.get("OPENMERCURY_LOAD_SECONDS", "20"))
MODES = ("ar", "verified", "diffusion", "auto")


def ask(prompt: int, *, stream: bool) -> dict[str, object]:
    told = {"model": MODEL, "prompt": f"def f{prompt}(x):", "mode": MODES[prompt % len(MODES)], "stream": stream}
    return {**told, "max_tokens": 60, "ignore_eos": True}


async def client(http: httpx.AsyncClient, number: int, until: float, expected: dict[int, str]) -> tuple[int, int]:
    """Ask one thing after another; returns how many answers came whole, and how many were left."""
    chance, whole, left = random.Random(number), 0, 0
    while time.monotonic() < until:
        prompt = chance.randrange(len(expected))
        leaving = chance.randrange(1, 30) if chance.random() < LEAVE else None
        lines, text = 0, ""
        async with http.stream("POST", "/v1/completions", json=ask(prompt, stream=True)) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
                    lines += 1
                if lines == leaving:
                    break
        if leaving is None:
            assert text == expected[prompt]
            whole += 1
        else:
            left += 1
    return whole, left


async def flood(served: Served, expected: dict[int, str]) -> tuple[int, int]:
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=served.url, timeout=120, limits=limits) as http:
        until = time.monotonic() + SECONDS
        counts = await asyncio.gather(*(client(http, number, until, expected) for number in range(CLIENTS)))
    return sum(whole for whole, _ in counts), sum(left for _, left in counts)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_clients_of_which_some_leave() -> None:
    with serving(llm(EngineConfig(max_requests=16, max_waiting=256))) as served:
        with httpx.Client(base_url=served.url, timeout=60) as http:
            expected = {
                prompt: http.post("/v1/completions", json=ask(prompt, stream=False)).json()["choices"][0]["text"]
                for prompt in range(8)
            }
        whole, left = finished(flood(served, expected))
        assert whole > CLIENTS / 2
        assert left > 0
        assert served.pages_free(10)
        assert len(served.service.engine._live) == 0
    # `serving` ends only when the web server's last task has: none is left over
