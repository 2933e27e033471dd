"""A tiny random model that speaks through a real tokenizer and chat template, and a real server in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from openmercury.engine.config import EngineConfig
from openmercury.engine.engine import Counts, Engine
from openmercury.engine.remote import RemoteEngine
from openmercury.llm import LLM
from openmercury.model.config import DiffusionFacts
from openmercury.model.weights import Progress
from openmercury.server.app import create_app, web_server
from openmercury.server.remote import RemoteLLM
from openmercury.server.service import Service
from openmercury.server.settings import ServerSettings
from openmercury.server.telemetry import Telemetry
from tests import tiny
from tests.text.made import byte_level

T = TypeVar("T")

MODEL = "openmercury-tiny"
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content | trim }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def llm(engine: EngineConfig | None = None, *, adapter: bool = True, context: int = 512) -> LLM:
    """Random weights of 384 tokens. Without files: what `LLM` would read is put in place."""
    made = LLM.__new__(LLM)
    made.tokenizer = byte_level(chat_template=TEMPLATE)
    ends = tuple(made.tokenizer.special[name] for name in ("<|im_end|>", "<|endoftext|>"))
    facts = tiny.config().diffusion
    assert facts is not None
    facts = DiffusionFacts(**{**facts.model_dump(), "mask_id": 383})
    made.config = tiny.config(adapter=adapter).model_copy(
        update={"vocab_size": 384, "max_context": context, "eos_ids": ends, "diffusion": facts if adapter else None}
    )
    made.folder, made.device, made.dtype = Path(MODEL), "cpu", "float64"
    made.engine = Engine(tiny.network(of=made.config), engine or EngineConfig(max_requests=8, max_waiting=64))
    return made


def remote(seconds: float = 0.0, **given: Any) -> RemoteLLM:
    """The same model as `llm` makes, in a process of its own, with the delay of `slow`."""
    here = llm(**given)
    load = functools.partial(_load, seconds, given)
    return RemoteLLM(here.folder, here.config, here.tokenizer, load, log_format="text")


def broken(progress: Progress) -> LLM:
    """A model whose device is gone; to be loaded in a process of its own."""
    model = llm()

    def crash(**_: Any) -> Any:
        raise SystemError("the device is gone")

    model.engine.step = crash  # type: ignore[method-assign]
    return model


def _load(seconds: float, given: dict[str, Any], progress: Progress) -> LLM:
    progress(1, 1)
    return slow(llm(**given), seconds)


@dataclass
class Served:
    """A running server."""

    url: str
    service: Service
    server: uvicorn.Server

    def pages_free(self, seconds: float = 5.0) -> bool:
        """Has the engine let go of everything?"""
        engine, end = self.service.llm.engine, time.monotonic() + seconds
        while not (free := _all_free(engine.counts())) and time.monotonic() < end:
            time.sleep(0.01)
        if isinstance(engine, RemoteEngine):
            finished(self.service.engine.run(engine.check_integrity))
        else:
            engine.check_integrity()
        return free


def _all_free(counts: Counts) -> bool:
    return counts.running == counts.waiting == 0 and counts.pages == counts.pages_free


def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run in a thread of its own: a browser under test keeps a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def slow(model: LLM, seconds: float) -> LLM:
    """The same model, whose every step takes longer."""
    step = model.engine.step

    def late(**given: Any) -> Any:
        time.sleep(seconds)
        return step(**given)

    model.engine.step = late  # type: ignore[method-assign]
    return model


@contextlib.contextmanager
def serving(model: LLM | RemoteLLM | None = None, traces: Telemetry | None = None, **settings: Any) -> Iterator[Served]:
    """The app behind uvicorn, on a free port of this machine."""
    service = Service(model or llm(), MODEL)
    given = ServerSettings(**settings)
    app = create_app(service, given, traces)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = web_server(app, given)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service, server)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
