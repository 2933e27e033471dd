"""How a command ends: one line on stderr and an exit code, whatever went wrong.

    0  done              1    an error of ours, of the machine, or a bug      2  wrong usage
    130  Ctrl-C
A traceback is shown on `--debug` only.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable

import typer

from openmercury.errors import OpenMercuryError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageProblem(typer.BadParameter):
    """Options that do not go together, or a value that cannot be; exits 2."""

    def format_message(self) -> str:
        """The message alone: it already names the option."""
        return self.message


def guarded(run: Callable[[], object], *, debug: bool = False) -> int:
    """Call `run` and turn however it ends into an exit code; `run` may return one."""
    code = FAILED
    try:
        result = run()
        code = result if isinstance(result, int) else OK
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        _forget_output()
    except SystemExit as end:  # typer leaves this way when a pipe breaks
        code = end.code if isinstance(end.code, int) else FAILED
        _forget_output()
    except Exception as error:  # the one place that catches everything: nobody but us wants a traceback
        if debug:
            traceback.print_exc()
        code = error.exit_code if isinstance(error, typer.TyperException) else FAILED
        _say(describe(error))
    if code == INTERRUPTED:
        _show_cursor()
        _say("\ninterrupted")
    return code


def describe(error: Exception) -> str:
    """One line on what went wrong and what to do about it."""
    if isinstance(error, typer.TyperException):
        command = getattr(getattr(error, "ctx", None), "command_path", "openmercury")
        told = _one_line(error.format_message()).replace("Value error, ", "").rstrip(".")
        return f"error: {told} (see `{command} --help`)"
    if isinstance(error, OpenMercuryError):
        return f"error: {_one_line(str(error))}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "error: out of memory: use a smaller model, fewer tokens, or --dtype bfloat16"
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f" {error.filename}"
        return f"error: {error.strerror}:{where} (check the path, its permissions and the free space)"
    told = f"{type(error).__name__}: {_one_line(str(error))}"
    return f"internal error: {told} (run with --debug for the trace, please report)"


def tolerate_encoding() -> None:
    """Let stdout and stderr show characters that their encoding lacks as escapes, where Python would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # stderr may be closed, too
        print(line, file=sys.stderr, flush=True)


def _show_cursor() -> None:
    """Undo what an interrupted animation may have left."""
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            stream.write("\x1b[?25h")
            stream.flush()


def _forget_output() -> None:
    """Nobody reads stdout any more: point it nowhere, so that the interpreter's last flush stays quiet."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
