"""`arena`: two contestants answer the same prompts; a person who is not told who wrote what says which is better."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast, get_args
from urllib.parse import urlsplit

import typer

from openmercury.cli import generate
from openmercury.cli.errors import UsageProblem
from openmercury.cli.eval_runs import KEY_ENV, server_key, settled
from openmercury.cli.generate import MARKER
from openmercury.cli.options import DECODING, MODEL, SHOWN, DtypeName, ModeName, Settings, option, refuse_unread
from openmercury.errors import ConfigError, DataError

if TYPE_CHECKING:
    from openmercury.eval.arena.match import Arena, Contestant
    from openmercury.eval.tasks.base import Prompt
    from openmercury.llm import LLM

ASKED = "What is asked"
MODES: tuple[str, ...] = get_args(ModeName)
PORT = 8710
# What an option goes with; given without it, nothing would read it.
SHOWING, VOTING, PAGE, TASK = "--show", "voting, not with --show", "--page", "--task"
FOLDER, URL = "a contestant that is a folder or a mode", "a contestant that is a URL"
NEEDS = {
    "contestants": VOTING,
    "page": VOTING,
    "prompts": VOTING,
    "task": VOTING,
    "max_tokens": VOTING,
    "temperature": VOTING,
    "port": PAGE,
    "data": TASK,
    "device": FOLDER,
    "dtype": FOLDER,
    "api_key_env": URL,
    "json_out": SHOWING,
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="arena")(arena)


def arena(
    invocation: typer.Context,
    contestants: Annotated[
        list[str] | None,
        typer.Argument(metavar="A B", help="Each a mode, FOLDER, FOLDER@MODE, or BASE_URL#MODEL."),
    ] = None,
    show: Annotated[bool, option("Print the scores from the votes so far, and leave.", "--show")] = False,
    page: Annotated[bool, option("Vote on a page in a browser on this machine.", "--page")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --page; 0 takes a free one.")] = PORT,
    votes: Annotated[Path, option("File that keeps the votes.", metavar="FILE")] = Path("arena.sqlite"),
    prompts: Annotated[
        Path | None, option("JSON Lines with prefix and suffix, or prompt.", panel=ASKED, metavar="FILE")
    ] = None,
    task: Annotated[str | None, option("Prompts of a benchmark; see `eval --list`.", panel=ASKED)] = None,
    data: Annotated[
        Path | None, option("Its folder. Default: $OPENMERCURY_EVAL_DATA", panel=ASKED, metavar="FOLDER")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to write at most.", rich_help_panel=DECODING)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 is greedy.", rich_help_panel=DECODING)] = 0.0,
    device: Annotated[str, option("auto, cpu or cuda.", panel=MODEL)] = "auto",
    dtype: Annotated[DtypeName, option("Number format of the weights.", panel=MODEL)] = "auto",
    api_key_env: Annotated[
        str, option("Variable of the environment that holds the servers' key.", panel=MODEL, metavar="NAME")
    ] = KEY_ENV,
    json_out: Annotated[bool, option("With --show: print JSON.", "--json", panel=SHOWN)] = False,
) -> None:
    """Compare two models or modes blindly. Without --prompts or --task, you paste code; <FILL> marks a gap in it."""
    named = [parse(word) for word in contestants or ()]
    refuse_unread(
        invocation,
        NEEDS,
        {
            SHOWING: show,
            VOTING: not show,
            PAGE: page,
            TASK: task is not None,
            FOLDER: any(one.mode is not None for one in named),
            URL: any(one.mode is None for one in named),
        },
    )
    if show:
        _show(votes, json_out)
        return
    if prompts is not None and task is not None:
        raise UsageProblem("--prompts and --task exclude each other: drop one")
    if len(named) != 2 or named[0].name == named[1].name:
        raise UsageProblem("give two contestants that differ, as in `openmercury arena ar diffusion`")
    settings = Settings(device=device, dtype=dtype, max_tokens=max_tokens, temperature=temperature)
    _hold(named, settings, api_key_env, votes, _prompts(prompts, task, data), port if page else None)


def _hold(
    named: Sequence[Named],
    settings: Settings,
    api_key_env: str,
    votes: Path,
    asked: Iterator[Prompt] | None,
    port: int | None,
) -> None:
    """Match after match: on a page where there is a port for it, else in the terminal."""
    from openmercury.cli import arena_screen
    from openmercury.eval.arena.match import Arena
    from openmercury.eval.arena.votes import Votes
    from openmercury.eval.systems import Sampling

    if port is None:
        arena_screen.need_person()
    kept = Votes(votes)  # before anything takes long
    pair = _contestants(named, settings, api_key_env)
    held = Arena(pair, kept, Sampling(temperature=settings.temperature), settings.max_tokens, random.Random())
    if port is None:
        arena_screen.play(held, asked or arena_screen.pasted(MARKER))
    else:
        _serve(held, asked, port)


# --- who -------------------------------------------------------------------------------------------------------------


class Named(NamedTuple):
    """A contestant as it was written: a folder in a mode, or a server's model (`mode` None)."""

    name: str
    where: str
    mode: str | None
    model: str = ""


def parse(word: str) -> Named:
    """A contestant by its word; raises UsageProblem for a URL without a model."""
    if word.startswith(("http://", "https://")):
        url, _, model = word.partition("#")
        if not model:
            raise UsageProblem(f"{word} names no model: write BASE_URL#MODEL")
        return Named(f"{model}@{urlsplit(url).netloc}", url, None, model)
    folder, at, mode = word.rpartition("@")
    if word in MODES:
        folder, mode = "", word
    elif not at or mode not in MODES:
        folder, mode = word, "verified"
    path = _default_folder() if not folder else Path(folder)
    return Named(f"{path.resolve().name}@{mode}", str(path), mode)


def _default_folder() -> Path:
    from openmercury.llm import default_model

    return default_model()


def _contestants(named: Sequence[Named], settings: Settings, api_key_env: str) -> tuple[Contestant, Contestant]:
    """Loads each folder once, whatever its modes."""
    from dataclasses import replace

    from openmercury.engine.params import Mode, SamplingParams
    from openmercury.eval.arena.match import Contestant
    from openmercury.eval.http import Remote
    from openmercury.eval.systems import Ours, System

    key = server_key(api_key_env)
    loaded: dict[str, LLM] = {}

    def system(one: Named) -> System:
        if one.mode is None:
            return Remote(one.where, one.model, key=key)
        if one.where not in loaded:
            loaded[one.where] = generate.load(replace(settings, model=one.where))
        params = settled(loaded[one.where], SamplingParams(mode=cast(Mode, one.mode), max_tokens=settings.max_tokens))
        return Ours(loaded[one.where], params)

    first, second = (Contestant(one.name, system(one)) for one in named)
    return first, second


# --- what ------------------------------------------------------------------------------------------------------------


def _prompts(file: Path | None, task: str | None, data: Path | None) -> Iterator[Prompt] | None:
    """In random order; None where a person gives them."""
    from openmercury.eval.arena import prompts
    from openmercury.eval.tasks import find

    if file is None and task is None:
        return None
    tasks = [] if task is None else find([task])
    found = prompts.read(file) if file is not None else [one for each in tasks for one in prompts.of_task(each, data)]
    random.shuffle(found)
    return iter(found)


# --- pages and tables ------------------------------------------------------------------------------------------------


def _serve(held: Arena, asked: Iterator[Prompt] | None, port: int) -> None:
    from openmercury.eval.arena.page import Page

    try:
        page = Page(held, asked, port)
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error.strerror}): give another --port, or 0") from None
    with page, contextlib.suppress(KeyboardInterrupt):
        print(f"the arena is at {page.url} (Ctrl-C ends it)", flush=True)
        page.serve_forever()


def _show(path: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from openmercury.eval.arena.standings import first_preferred, standings
    from openmercury.eval.arena.votes import Votes

    if not path.exists():
        raise DataError(f"there is no file {path}: vote first, or name it with --votes")
    votes = Votes(path).all()
    rows, (first, chosen) = standings(votes), first_preferred(votes)
    if as_json:
        told = {
            "votes": len(votes),
            "chosen": chosen,
            "first_chosen": first,
            "standings": [asdict(row) for row in rows],
        }
        print(json.dumps(told, indent=2))
    else:
        from openmercury.cli import arena_screen

        arena_screen.print_standings(rows, len(votes), first, chosen)
