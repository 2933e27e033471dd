"""`generate` and `fill`, and what `chat` shares with them: load the model, show the answer.

Text goes to stdout as it settles; spinners, the closing line of figures and errors go to stderr. Control characters in
the model's text are left out of what is printed; `--json` carries the text exactly.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openmercury.cli.errors import UsageProblem
from openmercury.cli.options import Settings, decode, option, takes_settings, valid_text
from openmercury.errors import EmptyPromptError, InputError

if TYPE_CHECKING:
    from openmercury.llm import LLM, Output, Step

MARKER = "<FILL>"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(generate)
    app.command()(fill)


@takes_settings
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask for; - reads it from stdin.", metavar="PROMPT|-")],
    settings: Settings,
    raw: Annotated[bool, option("Continue the prompt as it stands, without the chat template.", "--raw")] = False,
    system: Annotated[str | None, option("System message.", metavar="TEXT")] = None,
) -> None:
    """Write code for one prompt."""
    params = settings.sampling()
    if raw and system is not None:
        raise UsageProblem("--system has no effect with --raw: drop one")
    text = read_prompt(prompt)
    if not (text if raw else text.strip()):
        raise EmptyPromptError("the prompt is empty: say what you want")
    # `echo … |` adds a newline that nobody means.
    messages = [*system_message(system), {"role": "user", "content": text.removesuffix("\n")}]
    llm = load(settings)
    if raw:
        steps = llm.stream(text, params, show_draft=settings.show_steps)
    else:
        steps = llm.stream_chat(messages, params, show_draft=settings.show_steps)
    answer(llm, steps, settings)


@takes_settings
def fill(
    settings: Settings,
    prefix: Annotated[str | None, option("Code before the gap.", metavar="TEXT")] = None,
    suffix: Annotated[str | None, option("Code behind the gap.", metavar="TEXT")] = None,
    file: Annotated[str | None, option("File with the marker in the gap; - reads stdin.", metavar="PATH|-")] = None,
    marker: Annotated[str, option("What marks the gap in the file.", metavar="TEXT")] = MARKER,
) -> None:
    """Write what stands between two pieces of code, and print it alone."""
    params = settings.sampling()
    before, behind = _gap(prefix, suffix, file, marker)
    if not before and not behind:
        raise EmptyPromptError("prefix and suffix are both empty: give the code around the gap")
    llm = load(settings)
    answer(llm, llm.stream_fill(before, behind, params, show_draft=settings.show_steps), settings)


# --- what is asked ---------------------------------------------------------------------------------------------------


def read_prompt(prompt: str) -> str:
    """The prompt itself, or stdin for `-`; raises InputError where it is not UTF-8."""
    return decode(sys.stdin.buffer.read(), "stdin") if prompt == "-" else valid_text(prompt, "the prompt")


def system_message(system: str | None) -> list[dict[str, str]]:
    """The conversation's opening: one system message, or none."""
    return [] if system is None else [{"role": "system", "content": valid_text(system, "--system")}]


def _gap(prefix: str | None, suffix: str | None, file: str | None, marker: str) -> tuple[str, str]:
    if file is None:
        return valid_text(prefix or "", "--prefix"), valid_text(suffix or "", "--suffix")
    if prefix is not None or suffix is not None:
        raise UsageProblem("--file excludes --prefix and --suffix: give one or the other")
    if not marker:
        raise UsageProblem("--marker is empty: name the text that stands in the gap")
    name = "stdin" if file == "-" else file
    text = decode(sys.stdin.buffer.read() if file == "-" else _read_file(file), name)
    found = text.count(marker)
    if found != 1:
        raise InputError(f"{name} holds the marker {marker} {found} times: write it once, where the gap is")
    before, _, behind = text.partition(marker)
    return before, behind


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the path of a text file") from None


# --- who answers -----------------------------------------------------------------------------------------------------


def load_llm(
    model: str | None, device: str, dtype: str, progress: Callable[[int, int], None], changes: Mapping[str, object]
) -> LLM:
    """The model that answers; tests put a fake here."""
    from openmercury.llm import LLM

    return LLM(model, device=device, dtype=dtype, progress=progress, engine_changes=changes)


def load(settings: Settings, **changes: object) -> LLM:
    """Load the model, with a spinner where somebody watches; `changes` are of the engine's own settings."""
    from openmercury.cli.show import waiting

    with waiting("loading the model") as tell:
        return load_llm(
            settings.model,
            settings.device,
            settings.dtype,
            lambda done, total: tell(f"loading the model, {done / total:.0%}"),
            changes,
        )


# --- what is shown ---------------------------------------------------------------------------------------------------


def answer(llm: LLM, steps: Iterator[Step], settings: Settings) -> Output:
    """Show one answer as the settings ask, and return it."""
    from rich.console import Console

    from openmercury.cli import show

    if settings.json:
        with show.waiting("writing") as tell:
            output = _drain(steps, tell)
        print(json.dumps(as_json(llm, output)), flush=True)
        return output
    steps = _first_awaited(steps)
    output = show.draw_stream(steps, Console()) if settings.show_steps else show.print_stream(steps, sys.stdout)
    show.print_figures(output)
    return output


def as_json(llm: LLM, output: Output) -> dict[str, Any]:
    """The object of `--json`; times in seconds."""
    usage = output.usage
    return {
        "text": output.text,
        "finish_reason": output.finish_reason,
        "mode": output.mode,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "forwards": usage.forwards,
            "tokens_per_forward": round(usage.tokens_per_forward, 3),
            "seconds": round(usage.seconds, 3),
        },
        "model": llm.folder.resolve().name,
    }


def _drain(steps: Iterator[Step], tell: Callable[[str], None]) -> Output:
    output = None
    for step in steps:
        tell(f"writing, {step.forward} forwards")
        output = step.output
    assert output is not None
    return output


def _first_awaited(steps: Iterator[Step]) -> Iterator[Step]:
    """The same steps; a spinner runs until the first forward, which reads the whole prompt, is done."""
    from openmercury.cli.show import waiting

    with waiting("reading the prompt"):
        first = next(steps)
    return itertools.chain([first], steps)
