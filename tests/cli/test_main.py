"""How commands end: exit codes, one line on stderr, no trace; and the help page's speed."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import openmercury
from openmercury.cli import errors, main
from openmercury.cli.errors import guarded
from openmercury.errors import CheckpointError

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "transformers", "rich.live", "pydantic")


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


def test_help_is_fast_and_light() -> None:
    done = python("-X", "importtime", "-m", "openmercury", "--help")
    assert done.returncode == 0
    assert "generate" in done.stdout
    loaded = re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE)
    assert not [name for name in loaded if name in HEAVY]
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        python("-m", "openmercury", "--help")
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.3 or os.environ.get("CI"), times


def test_the_public_door() -> None:
    done = python(
        "-c",
        "import sys, openmercury; assert 'torch' not in sys.modules\n"
        "from openmercury import SamplingParams, load_config; assert 'torch' not in sys.modules\n"
        "print(SamplingParams(max_tokens=3).max_tokens, dir(openmercury))",
    )
    assert done.stdout.startswith("3 "), done.stderr
    assert all(name in done.stdout for name in openmercury.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        openmercury.nothing  # noqa: B018


def test_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("version", openmercury.__version__)
    assert capsys.readouterr().out == f"openmercury {written}\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("generat x", "Did you mean 'generate'?"),
        ("generate x --frob", "--frob"),
        ("generate", "Missing argument 'PROMPT|-'"),
        ("data", "Missing command"),
        ("generate x --mode fast", "'fast' is not one of 'diffusion', 'verified', 'ar', 'auto'"),
        ("data show x --rows -1", "--rows"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert told in shown.err
    assert "--help`" in shown.err


def test_nothing_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "debug", "left"),
    [
        (["generate", "x"], False, ["generate", "x"]),
        (["--debug", "generate", "x"], True, ["generate", "x"]),
        (["generate", "x", "--debug"], True, ["generate", "x"]),
        (["generate", "--", "--debug"], False, ["generate", "--", "--debug"]),
    ],
)
def test_debug_may_stand_anywhere(words: list[str], debug: bool, left: list[str]) -> None:
    assert main.take_debug(words) == (debug, left)


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (CheckpointError("a.gguf is cut:\n fetch it again"), 1, "error: a.gguf is cut: fetch it again\n"),
        (KeyError("x"), 1, "internal error: KeyError: 'x' (run with --debug for the trace, please report)\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: Permission denied: /x (check the path"),
        (MemoryError(), 1, "error: out of memory: "),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
    ],
)
def test_every_end_is_one_line(error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: raising(error)) == code
    shown = capsys.readouterr().err
    assert shown.startswith(told)
    assert "Traceback" not in shown
    if not isinstance(error, KeyboardInterrupt):
        guarded(lambda: raising(error), debug=True)
        assert "Traceback" in capsys.readouterr().err


def test_a_character_the_encoding_lacks_is_escaped() -> None:
    code = "from openmercury.cli import errors; errors.tolerate_encoding(); print('é░')"
    done = python("-c", code, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.stdout == "\\xe9\\u2591\n"


# --- a running command that is cut short -----------------------------------------------------------------------------

SLOW = ["-m", "tests.cli.fakes", "generate", "x"]


def test_ctrl_c_in_a_pipe() -> None:
    with subprocess.Popen(
        [sys.executable, *SLOW], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.read(7) == "def add"
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=10)
    assert running.returncode == errors.INTERRUPTED
    assert told == "\ninterrupted\n"


def test_ctrl_c_in_a_terminal_brings_the_cursor_back() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, *SLOW, "--show-steps"], {**os.environ, "TERM": "xterm"})
    shown = b""
    while b"return a + b" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    while chunk := _read(terminal):
        shown += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errors.INTERRUPTED
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert shown.endswith(b"\r\ninterrupted\r\n")
    assert b"Traceback" not in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that nobody holds the other end
        return b""


def test_a_broken_pipe_is_quiet() -> None:
    with subprocess.Popen(
        [sys.executable, *SLOW], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.read(1)
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 1


def test_modes_and_defaults_are_those_of_the_engine() -> None:
    from openmercury.cli.options import ModeName, Settings
    from openmercury.engine.params import Mode, SamplingParams

    assert get_args(ModeName) == get_args(Mode)
    hints = get_type_hints(Settings)
    for name, field in SamplingParams.model_fields.items():
        if name in hints:
            assert (getattr(Settings, name) or None) == (field.default or None), name
    assert set(SamplingParams.model_fields) - set(hints) == {"ignore_eos"}
