"""`serve`: OpenAI's and Mercury's API, and the playground, over one checkpoint."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from openmercury.cli.options import DECODING, MODEL, DtypeName, ModeName, option
from openmercury.errors import ConfigError, EngineStoppedError, UnsupportedError

if TYPE_CHECKING:
    from openmercury.llm import LLM
    from openmercury.model.weights import Progress
    from openmercury.server.remote import RemoteLLM
    from openmercury.server.settings import ServerSettings
    from openmercury.server.telemetry import Telemetry

REACH, ALLOWED = "Who may ask", "How much"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    model: Annotated[
        str | None,
        option("Checkpoint folder. Default: $OPENMERCURY_MODEL, else the shipped one.", panel=MODEL, metavar="FOLDER"),
    ] = None,
    device: Annotated[str, option("auto, cpu or cuda.", panel=MODEL)] = "auto",
    dtype: Annotated[DtypeName, option("Number format of the weights.", panel=MODEL)] = "auto",
    name: Annotated[str | None, option("The model's id. Default: the folder's name.", panel=MODEL)] = None,
    alias: Annotated[
        list[str] | None, option("Another id of it, instead of Mercury's names; repeatable.", panel=MODEL)
    ] = None,
    mode: Annotated[ModeName | None, option("For requests that name none. Default: auto.", panel=DECODING)] = None,
    host: Annotated[str | None, option("Address to bind. Default: 127.0.0.1.", panel=REACH)] = None,
    port: Annotated[int | None, option("0 takes a free one. Default: 8000.", panel=REACH)] = None,
    keys: Annotated[Path | None, option("File with the API keys' hashes.", panel=REACH, metavar="FILE")] = None,
    add_key: Annotated[
        str | None, option("Make a key, print it, write its hash to --keys, and leave.", panel=REACH, metavar="NAME")
    ] = None,
    requests_per_minute: Annotated[int | None, option("Of each key. Default: no limit.", panel=ALLOWED)] = None,
    tokens_per_minute: Annotated[int | None, option("Of each key, prompts included.", panel=ALLOWED)] = None,
    max_requests: Annotated[int | None, option("Decoded at once. Default: by device.", panel=ALLOWED)] = None,
    max_waiting: Annotated[
        int | None, option("Waiting for their turn, before others are refused. Default: 256.", panel=ALLOWED)
    ] = None,
    engine_process: Annotated[
        bool | None, option("Give the engine a process of its own. Default: on a GPU.", panel=ALLOWED)
    ] = None,
    log_format: Annotated[Literal["text", "json"] | None, option("Form of the log. Default: json.")] = None,
) -> None:
    """Serve the model over HTTP. Every setting is also a variable OPENMERCURY_…: docs/server.md lists them."""
    given = {
        "host": host, "port": port, "keys": keys, "mode": mode, "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute, "max_waiting": max_waiting, "log_format": log_format,
        "engine_process": engine_process,
        "aliases": None if alias is None else tuple(alias),
    }  # fmt: skip
    settings = _settings({key: value for key, value in given.items() if value is not None})
    from openmercury.server import auth, telemetry

    if add_key is not None:
        if settings.keys is None:
            raise ConfigError("--add-key needs a file to write to: give --keys FILE")
        print(auth.add_key(settings.keys, add_key))
        return
    auth.Door(settings)  # before minutes are spent on loading
    traces = telemetry.from_environment(os.environ)
    listener = _bound(settings.host, settings.port)
    changes = {"max_waiting": settings.max_waiting, **({} if max_requests is None else {"max_requests": max_requests})}
    from openmercury.server.remote import apart

    if apart(settings.engine_process, device):
        remote = load_remote(model, device, dtype, changes, settings.log_format)
        with contextlib.closing(remote):
            _run(remote, name, settings, listener, traces)
    else:
        _run(load_llm(model, device, dtype, changes), name, settings, listener, traces)


def load_llm(model: str | None, device: str, dtype: str, changes: dict[str, Any]) -> LLM:
    """The model that answers, with a spinner where somebody watches; tests put a tiny one here."""
    from openmercury.llm import LLM

    with _loading() as progress:
        return LLM(model, device=device, dtype=dtype, engine_changes=changes, progress=progress)


def load_remote(
    model: str | None, device: str, dtype: str, changes: dict[str, Any], log_format: Literal["text", "json"]
) -> RemoteLLM:
    """The same, with its engine in a process of its own."""
    from openmercury.server.remote import RemoteLLM

    with _loading() as progress:
        return RemoteLLM.open(
            model, device=device, dtype=dtype, engine_changes=changes, progress=progress, log_format=log_format
        )


@contextlib.contextmanager
def _loading() -> Iterator[Progress]:
    from openmercury.cli.show import waiting

    with waiting("loading the model") as tell:
        yield lambda done, total: tell(f"loading the model, {done / total:.0%}")


def _settings(given: dict[str, Any]) -> ServerSettings:
    try:
        from pydantic import ValidationError

        from openmercury.config import explain
        from openmercury.server.settings import ServerSettings
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"the server needs {error.name}, which is not installed: pip install 'openmercury[server]'"
        ) from None
    try:
        return ServerSettings(**given)
    except ValidationError as error:
        raise ConfigError(f"settings of the server: {explain(error, ServerSettings)}") from None


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens only when the model is there; raises ConfigError where the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        told = f"{host}:{port} cannot be bound ({error.strerror}): choose another --host or --port"
        raise ConfigError(told) from None
    return listener


def _run(
    llm: LLM | RemoteLLM,
    name: str | None,
    settings: ServerSettings,
    listener: socket.socket,
    traces: Telemetry | None,
) -> None:
    from openmercury.server import logs
    from openmercury.server.app import create_app, settle, warm_up, web_server
    from openmercury.server.remote import RemoteLLM
    from openmercury.server.service import Service

    logs.configure(settings.log_format)
    warm_up(llm, settings)
    service = Service(llm, name or llm.folder.resolve().name)
    app = create_app(service, settings, traces)
    where = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{where}:{listener.getsockname()[1]}"
    allowed = "with an API key" if settings.keys is not None else "from this machine, without a key"
    print(
        f"model   {service.name} on {llm.device}, {llm.dtype}, mode {settings.mode}\n"
        f"API     {address}/v1, {allowed}\n"
        f"page    {address}/",
        file=sys.stderr,
        flush=True,
    )
    settle()
    server = web_server(app, settings)
    if isinstance(llm, RemoteLLM):
        llm.engine.when_ended(lambda: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
    if isinstance(llm, RemoteLLM) and (died := llm.engine.died) is not None:
        raise EngineStoppedError(died)
