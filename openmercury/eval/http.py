"""Answers from a server that speaks the OpenAI protocol: chat/completions, completions, and completions with a suffix.

Whatever may pass (429, 5xx, a broken connection) is tried again after a pause that grows, or that the server asks for.
A server that stays away ends the run, not the answers it gave: the same command goes on from there. A prompt that it
refuses (400, 413, 422), or on which it keeps failing (500), is an answer with an error. The API key is in no message
and in no file.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from openmercury.errors import ConfigError, ServerError
from openmercury.eval.systems import Answer, Ask, Sampling, failed, stops
from openmercury.eval.tasks.base import Chat, Continue, Fill, Prompt

CONCURRENCY = 8
TIMEOUT_SECONDS = 600.0
ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 1.0  # doubled after each attempt
LONGEST_PAUSE_SECONDS = 120.0  # however long a server asks us to wait
STOPS_AT_MOST = 4  # of the protocol; those beyond are found here, when the answer has come
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
OF_THE_PROMPT = (400, 413, 422, 500)


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Redirects are refusals: urllib would follow them with the key, to any host, and without the question."""

    def redirect_request(self, *_: object) -> None:
        """No other request."""


class Remote:
    """A model behind a base URL such as http://localhost:8000/v1; `concurrency` requests are under way at once."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None = None,
        concurrency: int | None = None,
        attempts: int = ATTEMPTS,
        first_pause: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        """Raises ConfigError for what is no base URL, and for a key that no header can hold."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{base_url!r} is no base URL: give one like http://localhost:8000/v1")
        if parts.username or parts.password:
            raise ConfigError("the base URL holds credentials: leave them out, and name a variable by --api-key-env")
        if key is not None and not (key.isascii() and key.isprintable()):  # http.client would quote it
            raise ConfigError("the key holds a line break or other characters that no key has: set its variable again")
        self.base_url, self.model, self.concurrency = base_url.rstrip("/"), model, concurrency or CONCURRENCY
        self._key, self._attempts, self._first_pause = key, attempts, first_pause
        self._opener = urllib.request.build_opener(_StayHere)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Where, and which model by the server's own name; what stands behind it is the server's affair."""
        return {"kind": "url", "base_url": self.base_url, "model": self.model}

    def warm_up(self, asks: int, sampling: Sampling) -> None:
        """Nothing: the server's affair."""

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Answers as they come; raises ServerError behind the last that came, where the server is gone or refuses."""
        todo, done = SimpleQueue[int](), SimpleQueue[tuple[int, Answer] | ServerError | None]()
        for index in range(len(asks)):
            todo.put(index)
        leaving = threading.Event()

        def work() -> None:
            try:
                while not leaving.is_set():
                    index = todo.get_nowait()
                    done.put((index, self._ask(asks[index], sampling, leaving)))
            except Empty:
                pass
            except ServerError as error:
                leaving.set()
                done.put(error)
            finally:
                done.put(None)

        workers = min(self.concurrency, len(asks))
        for _ in range(workers):  # daemons: Ctrl-C does not wait for a slow server
            threading.Thread(target=work, daemon=True).start()
        gone = None
        try:
            while workers:
                item = done.get()
                if item is None:
                    workers -= 1
                elif isinstance(item, ServerError):
                    gone = gone or item
                else:
                    yield item
        finally:
            leaving.set()
        if gone is not None:
            raise gone

    def _ask(self, ask: Ask, sampling: Sampling, leaving: threading.Event) -> Answer:
        path, body = request(self.model, ask, sampling)
        pause = self._first_pause
        for attempt in range(1, self._attempts + 1):
            begin = time.monotonic()
            try:
                return read_answer(self._post(path, body), stops(ask.prompt), time.monotonic() - begin)
            except urllib.error.HTTPError as error:
                told = _told(error).replace(self._key or "\0", "…")  # some servers quote the key they refuse
                asked_pause = _retry_after(error.headers.get("Retry-After"))
                last = error.code not in PASSING or attempt == self._attempts
                if last and error.code in OF_THE_PROMPT:
                    return failed(told)
                if last:
                    remedy = "check --api-key-env, --model and the limits of your account, and run the command again"
                    raise ServerError(f"{self.base_url} refuses ({told}): {remedy}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:  # among them URLError and timeouts
                told, asked_pause = _reason(error), None
                if attempt == self._attempts:
                    break
            wait = pause * random.uniform(0.75, 1.25) if asked_pause is None else asked_pause
            if leaving.wait(min(wait, LONGEST_PAUSE_SECONDS)):
                break
            pause *= 2
        raise ServerError(
            f"{self.base_url} does not answer ({told}): what it gave is kept, and the same command goes on from there"
        )

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        asked = urllib.request.Request(f"{self.base_url}/{path}", json.dumps(body).encode(), headers)
        with self._opener.open(asked, timeout=TIMEOUT_SECONDS) as reply:
            return json.loads(reply.read())


def request(model: str, ask: Ask, sampling: Sampling) -> tuple[str, dict[str, Any]]:
    """Path and body."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": ask.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": ask.seed,
    }
    if stops(ask.prompt):
        body["stop"] = list(stops(ask.prompt)[:STOPS_AT_MOST])
    return _path(ask.prompt), body | _asked(ask.prompt)


def _path(prompt: Prompt) -> str:
    return "chat/completions" if isinstance(prompt, Chat) else "completions"


def _asked(prompt: Prompt) -> dict[str, Any]:
    match prompt:
        case Chat(user):
            return {"messages": [{"role": "user", "content": user}]}
        case Continue(text):
            return {"prompt": text}
        case Fill(prefix, suffix):
            return {"prompt": prefix, "suffix": suffix}


def read_answer(reply: Any, stop: Sequence[str], seconds: float) -> Answer:
    """The answer in a reply; raises ValueError where it is none of the protocol's."""
    try:
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        text = (choice["message"]["content"] if "message" in choice else choice["text"]) or ""
        tokens, forwards = int(usage.get("completion_tokens") or 0), usage.get("forwards")
        forwards = None if forwards is None else int(forwards)
        reason = str(choice.get("finish_reason") or "stop")
        if not isinstance(text, str):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise ValueError("its reply is not of the OpenAI protocol") from None
    found = [place for mark in stop if (place := text.find(mark)) >= 0]
    if found:
        text, reason = text[: min(found)], "stop"
    return Answer(text, reason, tokens, forwards, seconds)


def _told(error: urllib.error.HTTPError) -> str:
    """`HTTP 429: You exceeded …`; servers explain themselves in a few ways."""
    try:
        reply = json.loads(error.read())
        inner = reply.get("error", reply)
        reason = inner.get("message") if isinstance(inner, dict) else inner
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        reason = None
    told = " ".join(str(reason or error.reason).split())[:300]
    return f"HTTP {error.code}: {''.join(filter(str.isprintable, told))}"  # it is shown in a terminal


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks us to wait, given as such or as a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
