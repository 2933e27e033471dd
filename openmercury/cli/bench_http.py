"""What HTTP costs: the same prompts given to the engine, and over a socket to the server in front of it.

Both run in this process, one behind the other, or the server with an engine that has a process of its own, as it serves
then; the clients run in another one. Processor time is this process's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from openmercury.errors import UnsupportedError

if TYPE_CHECKING:
    from openmercury.engine.params import SamplingParams
    from openmercury.eval.prompts import PromptSet
    from openmercury.eval.speed import Speed
    from openmercury.llm import LLM
    from openmercury.server.remote import RemoteLLM


@dataclass(frozen=True)
class Served:
    """A closed loop over HTTP beside the same one without it; latencies in milliseconds from when a prompt was sent.

    `first_byte`: the head of the response, `first_text`: the first event with text. `cpu_us`: processor time of a token
    in microseconds, `direct` without HTTP. `share`: of the direct loop's tokens per second.
    """

    mode: str
    concurrency: int
    requests: int
    tokens: int
    chunks: int
    seconds: float
    tokens_per_second: float
    direct_tokens_per_second: float
    share: float
    cpu_us: float
    direct_cpu_us: float
    first_byte_ms_p50: float
    first_byte_ms_p95: float
    first_text_ms_p50: float
    first_text_ms_p95: float
    answer_ms_p50: float
    answer_ms_p95: float


def check() -> None:
    """Raise UnsupportedError where the extra is missing."""
    try:
        import openmercury.server.app  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"--http needs {error.name}: pip install 'openmercury[server]'") from None


@contextlib.contextmanager
def behind(llm: LLM, asked: bool | None) -> Iterator[LLM | RemoteLLM]:
    """What answers over HTTP: `llm`, or its checkpoint with an engine in a process of its own; None: as `serve`."""
    from openmercury.server.remote import RemoteLLM, apart

    if not apart("auto" if asked is None else asked, llm.device):
        yield llm
        return
    changes = llm.engine.config.model_dump()
    with contextlib.closing(
        RemoteLLM.open(llm.folder, device=llm.device, dtype=llm.dtype, engine_changes=changes)
    ) as remote:
        yield remote


def over(llm: LLM | RemoteLLM, asked: PromptSet, params: SamplingParams, direct: Speed) -> Served:
    """The closed loop of `direct` over HTTP; raises ServerError where an answer does not come."""
    from openmercury.eval.clients import Load
    from openmercury.eval.speed import percentile
    from openmercury.server.remote import RemoteLLM

    assert direct.concurrency is not None
    if isinstance(llm, RemoteLLM):
        llm.warm_up(direct.concurrency, params)
    bodies = list(itertools.islice(itertools.cycle(_bodies(llm, asked, params)), direct.requests))
    with serving(llm) as port:
        if isinstance(llm, RemoteLLM):  # the direct loop has warmed another engine
            Load(port, bodies[: 2 * direct.concurrency], direct.concurrency).visits()
        before = time.process_time()
        visits = Load(port, bodies, direct.concurrency).visits()
        cpu = time.process_time() - before
    tokens, seconds = sum(visit.tokens for visit in visits), max(visit.end for visit in visits)

    def ms(name: str, share: float) -> float:
        return 1e3 * percentile([getattr(visit, name) - visit.sent for visit in visits], share)

    return Served(
        mode=params.mode,
        concurrency=direct.concurrency,
        requests=direct.requests,
        tokens=tokens,
        chunks=sum(visit.chunks for visit in visits),
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        direct_tokens_per_second=direct.tokens_per_second,
        share=tokens / seconds / direct.tokens_per_second,
        cpu_us=1e6 * cpu / tokens,
        direct_cpu_us=1e6 * direct.cpu_seconds / direct.tokens,
        first_byte_ms_p50=ms("first_byte", 50),
        first_byte_ms_p95=ms("first_byte", 95),
        first_text_ms_p50=ms("first_text", 50),
        first_text_ms_p95=ms("first_text", 95),
        answer_ms_p50=ms("end", 50),
        answer_ms_p95=ms("end", 95),
    )


def _bodies(llm: LLM | RemoteLLM, asked: PromptSet, params: SamplingParams) -> list[dict[str, Any]]:
    told = {"model": _name(llm), "stream": True, "stream_options": {"include_usage": True}, "mode": params.mode}
    told |= {"max_tokens": params.max_tokens, "ignore_eos": params.ignore_eos, "temperature": 0}
    return [{**told, "messages": [{"role": "user", "content": text}]} for text in asked.texts]


def _name(llm: LLM | RemoteLLM) -> str:
    return llm.folder.resolve().name


@contextlib.contextmanager
def serving(llm: LLM | RemoteLLM) -> Iterator[int]:
    """The server in a thread of this process, set as its environment says; gives its port."""
    from openmercury.server.app import create_app, settle, web_server
    from openmercury.server.service import Service
    from openmercury.server.settings import ServerSettings

    settings = ServerSettings(host="127.0.0.1", keys=None, max_concurrent=1 << 20)
    with _logging_nowhere(settings.log_format), socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(Service(llm, _name(llm)), settings)
        settle()
        server = web_server(app, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def _logging_nowhere(form: Literal["text", "json"]) -> Iterator[None]:
    """Lines of the log are written, as they would be, where nobody reads them."""
    from openmercury.log import get_logger
    from openmercury.server import logs

    logger = get_logger()
    handlers, level = logger.handlers[:], logger.level
    with open(os.devnull, "w") as nowhere:
        logs.configure(form, nowhere)
        try:
            yield
        finally:
            logger.handlers[:] = handlers
            logger.setLevel(level)
