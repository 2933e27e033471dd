"""The arena as a page, for browsers on this machine.

    GET /         the page        POST /match   {} or {prefix, suffix} → {id, prefix, suffix, answers, same}
    GET /scores   a table         POST /vote    {id, outcome} → [{name, seconds}, …], only now

It listens on the loopback only. Any site that is open in the same browser can send requests there, so: the host must be
a name of this machine (or a site could resolve its own name to it), and a POST must come from the page's own origin, as
JSON. The page takes all texts as text, never as HTML, and its policy forbids every other source.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openmercury.errors import InputError, OpenMercuryError
from openmercury.eval.arena.match import Arena, Match
from openmercury.eval.arena.prompts import around, own
from openmercury.eval.arena.standings import COLUMNS, cells, standings
from openmercury.eval.arena.votes import CHOICES
from openmercury.eval.tasks.base import Prompt

LOOPBACK = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost", "::1")
BODY_BYTES = 1 << 20
OPEN_MATCHES = 100  # that wait for a vote; of more, the oldest are forgotten
POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = Path(__file__).with_name("page.html")


class RefusedError(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Page(ThreadingHTTPServer):
    """Serves one arena; `prompts` None leaves the prompts to whoever opens the page."""

    daemon_threads = True

    def __init__(self, arena: Arena, prompts: Iterator[Prompt] | None, port: int) -> None:
        """Port 0 takes a free one; raises OSError where the port is taken."""
        super().__init__((LOOPBACK, port), _Handler)
        self.arena, self.prompts = arena, prompts
        self.open: OrderedDict[str, Match] = OrderedDict()
        self.turn = threading.Lock()  # one match at a time, or latencies would be those of two

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/"

    def match(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A new match, without names."""
        with self.turn:
            match = self.arena.match(self._prompt(asked))
            if match.same:
                self.arena.vote(match, "same")
            else:
                self.open[match.id] = match
                while len(self.open) > OPEN_MATCHES:
                    self.open.popitem(last=False)
        prefix, suffix = around(match.prompt)
        texts = [answer.text for answer in match.answers]
        return {"id": match.id, "prefix": prefix, "suffix": suffix, "answers": texts, "same": match.same}

    def _prompt(self, asked: Mapping[str, Any]) -> Prompt:
        prefix, suffix = asked.get("prefix"), asked.get("suffix")
        if prefix is not None:
            if not isinstance(prefix, str) or not isinstance(suffix, str | None):
                raise RefusedError(HTTPStatus.BAD_REQUEST, "prefix and suffix should be texts")
            return own(prefix, suffix)
        if self.prompts is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "there are no prompts: paste your own code")
        prompt = next(self.prompts, None)
        if prompt is None:
            raise RefusedError(HTTPStatus.GONE, "all prompts have been asked: paste your own code, or start again")
        return prompt

    def vote(self, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Keep a vote, and tell who wrote what."""
        number, outcome = asked.get("id"), asked.get("outcome")
        if not isinstance(outcome, str) or outcome not in CHOICES:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"outcome should be one of {', '.join(CHOICES)}")
        match = self.open.get(number) if isinstance(number, str) else None
        if match is None:
            raise RefusedError(
                HTTPStatus.NOT_FOUND, "this match has its vote already, or is too old: go on to the next"
            )
        self.arena.vote(match, CHOICES[outcome])
        self.open.pop(match.id, None)
        pairs = zip((match.first, match.second), match.answers, strict=True)
        return [{"name": one.name, "seconds": answer.seconds} for one, answer in pairs]

    def scores(self) -> dict[str, Any]:
        """The table."""
        rows: Sequence[Sequence[str]] = [cells(row) for row in standings(self.arena.votes.all())]
        return {"columns": COLUMNS, "rows": rows}


class _Handler(BaseHTTPRequestHandler):
    server: Page

    def do_GET(self) -> None:
        if self.path == "/":
            self._guard(self._show)
        elif self.path == "/scores":
            self._guard(lambda: self._json(HTTPStatus.OK, self.server.scores()))
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": "there is nothing here: the page is at /"})

    def do_POST(self) -> None:
        actions: dict[str, Callable[[Mapping[str, Any]], object]] = {
            "/match": self.server.match,
            "/vote": self.server.vote,
        }
        action = actions.get(self.path)
        if action is None:
            self._json(HTTPStatus.NOT_FOUND, {"error": "there is nothing here: the page is at /"})
        else:
            self._guard(lambda: self._json(HTTPStatus.OK, action(self._body())))

    def _guard(self, answer: Callable[[], None]) -> None:
        try:
            if _host(self.headers.get("Host")) not in HOSTS:
                raise RefusedError(HTTPStatus.FORBIDDEN, "this page is for browsers on its own machine")
            answer()
        except RefusedError as error:
            self._json(error.status, {"error": str(error)})
        except OpenMercuryError as error:
            status = HTTPStatus.BAD_REQUEST if isinstance(error, InputError) else HTTPStatus.SERVICE_UNAVAILABLE
            self._json(status, {"error": str(error)})

    def _body(self) -> Mapping[str, Any]:
        if self.headers.get("Origin") != f"http://{self.headers.get('Host')}":
            raise RefusedError(HTTPStatus.FORBIDDEN, "this request comes from another site")
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body should be application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "the length of the body is missing")
        if len(length) > len(str(BODY_BYTES)) or int(length) > BODY_BYTES:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is over {BODY_BYTES} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the body should be a JSON object")
        return body

    def _show(self) -> None:
        nonce = secrets.token_urlsafe(16)
        page = PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
        page = page.replace("{{prompts}}", json.dumps(self.server.prompts is not None))
        headers = {"Content-Security-Policy": POLICY.format(nonce)}
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), headers)

    def _json(self, status: HTTPStatus, value: object) -> None:
        if status != HTTPStatus.OK:
            self.close_connection = True  # a body that was refused has not been read
        self._send(status, "application/json", json.dumps(value).encode(), {})

    def _send(self, status: HTTPStatus, kind: str, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        common = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store"}
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **common, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal belongs to whoever started the arena."""


def _host(header: str | None) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
