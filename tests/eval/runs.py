"""What a run of evaluation needs, made up: a benchmark, a model that answers it, a server that speaks the protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

from openmercury.engine.params import SamplingParams
from openmercury.eval.systems import Answer, Ask, Sampling
from openmercury.eval.tasks.base import Chat, Continue, Fill, Problem, Program, Prompt, Style
from openmercury.llm import Output, Usage


class Sums:
    """Problem i wants `f` to give i. In style completion a right answer is ` i`, in style fill `i`."""

    title, max_tokens = "Sums", 64
    styles: tuple[Style, ...] = ("chat", "completion", "fill")

    def __init__(self, name: str = "sums", prompts: str = "sums", language: str = "python", ask: str = "Give") -> None:
        self.name, self.prompts, self.language, self.ask = name, prompts, language, ask

    def problems(self, folder: Path | None, style: Style) -> list[Problem]:
        return [Problem(f"Sum/{number}", self._prompt(number, style), {"number": number}) for number in range(6)]

    def _prompt(self, number: int, style: Style) -> Prompt:
        if style == "chat":
            return Chat(f"{self.ask} {number}")
        if style == "completion":
            return Continue(f"f = lambda: {number}", ("\n", "#", ";", "!", "?"))
        return Fill(f"f = lambda: {number}", "\n")

    def program(self, problem: Problem, answer: str) -> Program:
        return Program(f"{answer.strip()}\nassert f() == {problem.row['number']}\n", self.language, timeout=5.0)


def right(prompt: str) -> str:
    """What solves a problem of Sums, in style chat."""
    return f"f = lambda: {prompt.split()[-1]}\r\n"


class Scripted:
    """A system that answers by a function of the prompt; the function may raise."""

    concurrency = 2

    def __init__(self, reply: Callable[[str], str] = right, name: str = "scripted") -> None:
        self.reply, self.identity = reply, {"kind": "scripted", "model": name}
        self.asked: list[Ask] = []

    def warm_up(self, asks: int, sampling: Sampling) -> None:
        self.warmed = asks

    def answer(self, asks: Sequence[Ask], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        for number, ask in reversed(list(enumerate(asks))):
            assert isinstance(ask.prompt, Chat)
            self.asked.append(ask)
            text = self.reply(ask.prompt.user)
            yield number, Answer(text, "stop", 6, 2, 0.25, tuple(text.encode()[:6]))


class ByteTokenizer:
    """One token for each byte; the template is the content alone."""

    chat_template = "{{ messages[0]['content'] }}"
    special: dict[str, int] = {}  # noqa: RUF012
    named_tokens: dict[str, str] = {}  # noqa: RUF012

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return list(text.encode())


class BatchLLM:
    """Solves Sums, in 6 tokens and 2 forwards each; `folder` must be there."""

    def __init__(self, folder: Path, reply: Callable[[str], str] = right) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        self.tokenizer, self.reply = ByteTokenizer(), reply
        self.folder, self.device, self.dtype = folder, "cpu", "float32"
        self.config = SimpleNamespace(eos_ids=(0,), max_context=500, diffusion=None)
        self.params: list[SamplingParams] = []

    def warm_up(self, requests: int, params: SamplingParams) -> None:
        self.warmed = requests

    def stream_batch(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        ends: Sequence[Sequence[int]],
        concurrency: int,
    ) -> Iterator[tuple[int, Output]]:
        self.params += params
        for number, (ids, one) in enumerate(zip(prompts, params, strict=True)):
            text = self.reply(bytes(ids).decode())
            yield number, Output(text, "stop", one.mode, Usage(len(ids), 6, 2, 0.5), tuple(text.encode()[:6]))


Reply = tuple[int, dict[str, Any], dict[str, str]]  # status, JSON, headers


class Server:
    """Answers on a port of its own, in a thread; `reply(number, path, body, headers)` says what, or None hangs up."""

    def __init__(self, reply: Callable[[int, str, dict[str, Any], dict[str, str]], Reply | None]) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, body))
                said = reply(len(server.asked), self.path, body, dict(self.headers))
                if said is None:
                    self.close_connection = True
                    return
                status, told, headers = said
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(json.dumps(told).encode())

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()


def chat_reply(body: dict[str, Any], **usage: int) -> Reply:
    """The reply of a model that solves Sums."""
    text = right(body["messages"][0]["content"])
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": {"completion_tokens": 5, **usage}}, {}
