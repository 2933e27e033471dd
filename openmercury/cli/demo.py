"""`demo`: the shipped model writes a function before your eyes, and the doctest examples in it are then run.

Whether its code does what it says is decided by running it, in the sandbox.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from openmercury.cli import generate
from openmercury.cli.options import DECODING, MODEL, ModeName, Settings, option

if TYPE_CHECKING:
    from openmercury.llm import LLM, Output

FUNCTION = "is_palindrome"
# A signature with its docstring, as the first adapter was trained to complete.
PROMPT = f'''Complete the following Python function. Write the full function.
```python
def {FUNCTION}(text: str) -> bool:
    """Return True if text reads the same forwards and backwards.

    >>> {FUNCTION}("level")
    True
    >>> {FUNCTION}("diffusion")
    False
    """
```'''
MAX_TOKENS = 384
TIMEOUT_SECONDS = 10.0
NEXT = 'next: openmercury generate --show-steps --mode diffusion "Write a Python function that …"'

# Runs behind the model's code, in the same module; what the code itself prints ends at the mark.
MARK = "--- doctest ---"
DOCTESTS = f"""

import doctest as _doctest
import sys as _sys


class _Runner(_doctest.DocTestRunner):
    def _tell(self, verdict, example, got):
        call = " ".join(line.strip() for line in example.source.splitlines())
        told = " ".join(got.split())
        print(verdict, call, "->", told or "(nothing)", file=_sys.__stdout__)

    def report_start(self, out, test, example):
        pass

    def report_success(self, out, test, example, got):
        self._tell("ok   ", example, got)

    def report_failure(self, out, test, example, got):
        self._tell("WRONG", example, got.strip() + ", expected " + example.want.strip())

    def report_unexpected_exception(self, out, test, example, exc_info):
        self._tell("WRONG", example, exc_info[0].__name__ + ", expected " + example.want.strip())


print({chr(10) + MARK!r}, flush=True)
_runner = _Runner(verbose=False)
_results = [_runner.run(_test) for _test in _doctest.DocTestFinder().find(_sys.modules[__name__])]
_failed, _attempted = sum(_result.failed for _result in _results), sum(_result.attempted for _result in _results)
if not _attempted:
    _sys.exit("there is no doctest example in the code")
if _failed:
    _sys.exit(f"{{_failed}} of {{_attempted}} doctest examples gave another result")
"""


@dataclass(frozen=True)
class Checked:
    """What running the examples showed: a line for each, and why they do not hold (None: they do)."""

    examples: list[str]
    problem: str | None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    model: Annotated[
        str | None,
        option("Checkpoint folder. Default: $OPENMERCURY_MODEL, else the shipped one.", panel=MODEL, metavar="FOLDER"),
    ] = None,
    mode: Annotated[ModeName, option("How to decode.", panel=DECODING)] = "diffusion",
) -> None:
    """Watch the model write a function, then run the function's own examples."""
    from rich.console import Console

    from openmercury.cli import show

    settings = Settings(model=model, mode=mode, max_tokens=MAX_TOKENS)
    llm = generate.load(settings)
    print(f"{describe(llm)}\n\n{PROMPT}\n", flush=True)
    steps = llm.stream_chat([{"role": "user", "content": PROMPT}], settings.sampling(), show_draft=True)
    output = show.draw_stream(steps, Console())
    problem = _check(output)
    print(f"\n{figures(output)}\n{NEXT}", flush=True)
    if problem is not None:
        print(f"error: the model's code does not pass its own doctest: {problem}", file=sys.stderr)
        raise typer.Exit(1)


def describe(llm: LLM) -> str:
    """One line on what is loaded."""
    millions = sum(parameter.numel() for parameter in llm.engine.model.parameters()) / 1e6
    return (
        f"{llm.folder.resolve().name}: {millions:,.0f}M parameters on {llm.device} in {llm.dtype}, "
        f"loaded in {llm.load_seconds:.1f} s"
    )


def figures(output: Output) -> str:
    """One line on what the answer took."""
    usage = output.usage
    return (
        f"{usage.completion_tokens} tokens in {usage.forwards} forwards: {usage.tokens_per_forward:.2f} per forward, "
        f"{usage.seconds:.1f} s, {usage.completion_tokens / max(usage.seconds, 1e-9):.1f} tokens/s, mode {output.mode}"
    )


def _check(output: Output) -> str | None:
    """Run the answer's examples and show them; what is wrong, None where they hold or cannot be run here."""
    from openmercury.cli.show import clean
    from openmercury.errors import SandboxError
    from openmercury.eval.sandbox import usable_backend

    try:
        backend = usable_backend()
    except SandboxError as error:
        print(f"\nThe code was not run: {error}")
        return None
    print(f"\nRunning its own doctest examples in the sandbox ({backend}):")
    checked = run_examples(output.text)
    for line in checked.examples:
        print(f"  {clean(line)}")
    if checked.problem is not None:
        return clean(checked.problem)
    print(f"  {len(checked.examples)} examples hold")
    return None


def run_examples(answer: str) -> Checked:
    """Run the doctest examples of an answer's code in the sandbox; an answer without any does not hold."""
    from openmercury.eval.sandbox import run_python
    from openmercury.eval.tasks.extract import extract

    verdict = run_python(extract(answer, FUNCTION) + DOCTESTS, timeout=TIMEOUT_SECONDS)
    told = verdict.stdout.rpartition(f"{MARK}\n")[2] if MARK in verdict.stdout else ""
    problem = verdict.stderr.strip().splitlines()[-1:] or [verdict.status]
    return Checked(told.splitlines(), None if verdict.passed else problem[0])
