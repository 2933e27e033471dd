"""How much one client and all clients together may ask for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from openmercury.server.errors import ApiError, overloaded
from openmercury.server.settings import ServerSettings


class Bucket:
    """A budget of `limit` a minute that refills evenly; it may be overdrawn, and then stays shut until it is repaid."""

    def __init__(self, limit: int) -> None:
        self.limit, self._level, self._at = limit, float(limit), time.monotonic()

    def level(self) -> float:
        """What is left now."""
        now = time.monotonic()
        self._level = min(self.limit, self._level + (now - self._at) * self.limit / 60)
        self._at = now
        return self._level

    def spend(self, amount: float) -> None:
        """Take so much, be it there or not."""
        self._level = self.level() - amount

    def seconds_until(self, level: float) -> float:
        """Until so much is there."""
        return max(0.0, (level - self.level()) * 60 / self.limit)


class Client:
    """One key with its budgets. Tokens are charged when an answer has ended, since nobody knows before how many."""

    def __init__(self, name: str, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self.name, self.running = name, 0
        budgets = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self.buckets = {kind: Bucket(limit) for kind, limit in budgets.items() if limit is not None}

    def start_request(self) -> None:
        """Charge one request; raises ApiError 429 where a budget is used up."""
        for kind, bucket in self.buckets.items():
            wait = bucket.seconds_until(1)
            if wait > 0:
                told = f"the limit of {bucket.limit} {kind} a minute is reached: try again in {wait:.1f} s"
                raise limited(told, wait, self.headers())
        if "requests" in self.buckets:
            self.buckets["requests"].spend(1)

    def charge(self, tokens: int) -> None:
        """Take tokens of prompts and answers off the budget."""
        if "tokens" in self.buckets:
            self.buckets["tokens"].spend(tokens)

    def headers(self) -> dict[str, str]:
        """OpenAI's headers that tell how much is left."""
        told = {}
        for kind, bucket in self.buckets.items():
            told[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
            told[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(bucket.level())))
            told[f"x-ratelimit-reset-{kind}"] = f"{bucket.seconds_until(bucket.limit):.3f}s"
        return told


class Room:
    """Requests under way at once, of one client and of all."""

    def __init__(self, settings: ServerSettings) -> None:
        self._most, self._each = settings.max_concurrent, settings.max_concurrent_per_key
        self.running = 0

    @contextmanager
    def entered(self, client: Client) -> Iterator[None]:
        """Count one in; raises ApiError 503 where the server is full, 429 where the client has enough."""
        if self.running >= self._most:
            raise overloaded(f"{self.running} requests are under way, as many as may be: try again later")
        if self._each is not None and client.running >= self._each:
            raise limited(f"{client.running} requests of this key are under way: wait for one to end", 1.0, {})
        self.running += 1
        client.running += 1
        try:
            yield
        finally:
            self.running -= 1
            client.running -= 1


def limited(told: str, seconds: float, headers: Mapping[str, str]) -> ApiError:
    """429, to be tried again in so many seconds."""
    again = {"retry-after": str(math.ceil(seconds)), "retry-after-ms": f"{seconds * 1e3:.0f}"}
    return ApiError(429, told, "rate_limit_error", "rate_limit_reached", headers={**headers, **again})
