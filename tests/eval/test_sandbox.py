"""Whatever a program does in the sandbox, the verdict is right, the machine untouched, and nothing left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmercury.errors import SandboxError
from openmercury.eval import jail, sandbox
from openmercury.eval.sandbox import Backend, Verdict, run_python, usable_backend

MEGABYTE = 1 << 20
PACKAGE = Path(sandbox.__file__).parents[1]


def running(mark: str) -> list[str]:
    """Processes of this machine whose command line holds `mark`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if mark in path.read_text(errors="replace") else []
        except OSError:
            continue
    return found


def contained(program: str, backend: Backend, *, timeout: float = 10.0, memory: int = 512 * MEGABYTE) -> Verdict:
    """The verdict, after checks that nothing of the program is left and that the next program runs."""
    timeout += time.monotonic_ns() % 997 / 1e6  # marks the command lines of this run
    verdict = run_python(program, timeout=timeout, memory_bytes=memory, backend=backend)
    assert running(f'"seconds": {timeout}') == []
    assert verdict.seconds < timeout + 3
    assert run_python("print('next')", backend=backend).stdout == "next\n"
    return verdict


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_passing_program_passes(backend: Backend) -> None:
    verdict = run_python("import math\nprint(math.factorial(20))", backend=backend)
    assert verdict.passed
    assert (verdict.status, verdict.stdout, verdict.stderr) == ("passed", "2432902008176640000\n", "")


def test_failing_program_shows_its_own_lines(backend: Backend) -> None:
    verdict = run_python("def f():\n    assert 1 == 2\nf()", backend=backend)
    assert verdict.status == "failed"
    assert '"<program>", line 2, in f\n    assert 1 == 2' in verdict.stderr
    assert "jail" not in verdict.stderr


@pytest.mark.parametrize(
    "program",
    [
        "def f(:",
        "import sys; sys.exit(0)",
        "exit()",
        "import os; os._exit(0)",
        "import os; os._exit(40)",  # what the sandbox itself says of a program that passed
        "import os; os.abort()",
        "import ctypes; ctypes.string_at(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "def f(): f()\nf()",
        "raise KeyboardInterrupt",
        "\x00",
        "# coding: nonsense\n",
        "print('\ud800')",
        "class Rude(Exception):\n    def __str__(self): raise self\nraise Rude",
    ],
)
def test_whatever_ends_before_its_last_line_failed(program: str, anywhere: None) -> None:
    verdict = run_python(program)
    assert verdict.status == "failed"
    assert verdict.stderr


def test_main_block_does_not_run_and_classes_find_their_module(anywhere: None) -> None:
    program = """
from __future__ import annotations
import dataclasses, pickle
@dataclasses.dataclass
class Point:
    x: int
assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
if __name__ == "__main__":
    1 / 0
"""
    assert run_python(program).passed


def test_verdicts_do_not_depend_on_the_hash_seed(anywhere: None) -> None:
    program = "print({'a', 'b', 'c', 'd', 'e'}, hash('a'))"
    assert run_python(program).stdout == run_python(program).stdout


def test_stdin_is_empty(anywhere: None) -> None:
    assert run_python("import sys\nassert sys.stdin.read() == ''").passed


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time; time.sleep(100)", "input = 1\nwhile input: input += 1"]
)
def test_endless_program_times_out(program: str, backend: Backend) -> None:
    assert contained(program, backend, timeout=0.5).status == "timeout"


def test_deaf_program_times_out(backend: Backend) -> None:
    program = """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda *_: None)
while True:
    try:
        while True: pass
    except BaseException: pass
"""
    assert contained(program, backend, timeout=0.5).status == "timeout"


def test_fork_bomb(backend: Backend) -> None:
    program = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert contained(program, backend, timeout=0.7).status == "timeout"


def test_processes_are_counted(backend: Backend) -> None:
    program = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(100)"
    verdict = contained(program, backend)
    assert verdict.status == "failed"
    assert "Resource temporarily unavailable" in verdict.stderr


def test_what_a_program_leaves_behind_dies(backend: Backend) -> None:
    program = """
import os, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(100)
"""
    verdict = contained(program, backend)
    assert verdict.passed
    assert verdict.seconds < 5


def test_memory_bomb(backend: Backend) -> None:
    program = "kept = []\nwhile True: kept.append(bytearray(1 << 20))"
    assert contained(program, backend, memory=128 * MEGABYTE).status == "memory"


def test_memory_bomb_of_many_processes(backend: Backend) -> None:
    program = """
import os, time
for _ in range(10):
    if os.fork() == 0:
        kept = b"x" * (40 << 20)
        time.sleep(100)
time.sleep(100)
"""
    assert contained(program, backend, memory=128 * MEGABYTE).status == "memory"


def test_filling_tmp(backend: Backend) -> None:
    program = """
for number in range(1000):
    with open(f"/tmp/{number}", "wb") as file:
        file.write(bytes(8 << 20))
"""
    assert contained(program, backend, memory=128 * MEGABYTE).status in ("memory", "failed")


def test_endless_output(backend: Backend) -> None:
    verdict = contained("while True: print('x' * 999)", backend)
    assert verdict.status == "failed"
    assert "File too large" in verdict.stderr
    assert "bytes left out" in verdict.stdout
    assert len(verdict.stdout) < 2 * sandbox.SHOWN_BYTES


# --- walls -----------------------------------------------------------------------------------------------------------


def test_no_network(backend: Backend) -> None:
    program = """
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try:
        socket.socket(socket.AF_INET, kind).connect(("192.0.2.1", 9))
    except OSError as error:
        print(error.strerror)
"""
    assert contained(program, backend).stdout.count("Network is unreachable") == 2


def test_only_tmp_can_be_written(backend: Backend) -> None:
    program = """
import os, sys
places = ["/", "/usr", "/etc", "/dev", "/proc", "/root", "/home", sys.prefix, sys.base_prefix, "/usr/local", "/var"]
for place in places:
    try:
        open(os.path.join(place, "left"), "w")
    except OSError:
        continue
    raise AssertionError(place)
open("left", "w").write("in tmp")
print(os.getcwd(), open("/tmp/left").read())
"""
    left = Path(tempfile.gettempdir()) / "left"
    assert not left.exists()
    assert contained(program, backend).stdout == "/tmp in tmp\n"
    assert not left.exists()


def test_our_files_are_not_there(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sesame")
    hidden = [str(tmp_path / "secret"), str(PACKAGE.parent / "pyproject.toml"), "/etc/passwd", "/etc/shadow"]
    assert contained(f"import os\nfor path in {hidden}: assert not os.path.exists(path), path", backend).passed


def test_environment_does_not_leak(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMERCURY_SECRET", "sesame")
    program = """
import os, pathlib
print(dict(os.environ))
for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
        print(path, path.read_text())
    except OSError as error:
        print(path, error.strerror)
"""
    verdict = contained(program, backend)
    assert verdict.passed
    assert "/proc/1/environ" in verdict.stdout
    assert "sesame" not in verdict.stdout
    assert "OPENMERCURY" not in verdict.stdout


def test_other_processes_are_out_of_sight(backend: Backend) -> None:
    program = """
import os
print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) == [1, os.getpid()])
for name in ("maps", "mem", "environ", "fd", "root"):
    try:
        path = f"/proc/1/{name}"
        os.listdir(path) if name in ("fd", "root") else open(path, "rb").read(1)
    except OSError:
        continue
    print(name)
"""
    assert contained(program, backend).stdout == "True\n"


def test_parent_cannot_be_killed(backend: Backend) -> None:
    program = """
import os, signal
for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGINT):
    os.kill(1, number)
    os.kill(os.getppid(), number)
"""
    assert contained(program, backend).passed


def test_killing_everything_reaches_only_the_sandbox(backend: Backend) -> None:
    program = """
import os, signal, time
if os.fork() == 0:
    time.sleep(100)
os.kill(-1, signal.SIGKILL)  # spares the caller and PID 1
"""
    assert contained(program, backend).passed


def test_no_rights_are_left(backend: Backend) -> None:
    program = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(os.getuid() != 0, int(status["CapEff"], 16), int(status["CapPrm"], 16), status["NoNewPrivs"].strip())
print(sorted(os.listdir("/proc/self/fd"))[:3], len(os.listdir("/proc/self/fd")))
"""
    lines = contained(program, backend).stdout.splitlines()
    assert lines[0] == "True 0 0 1"
    assert lines[1] == "['0', '1', '2'] 4"  # the fourth lists the folder


# --- how it starts and ends ------------------------------------------------------------------------------------------


def test_dies_with_us(backend: Backend) -> None:
    mark = 60 + time.monotonic_ns() % 997 / 1e6
    call = f"run_python('while True: pass', timeout={mark}, backend={backend!r})"
    script = f"from openmercury.eval.sandbox import run_python\n{call}"
    ours = subprocess.Popen([sys.executable, "-c", script], cwd=PACKAGE.parent)
    assert eventually(lambda: len(running(f'"seconds": {mark}')) >= 3)
    ours.send_signal(signal.SIGKILL)
    ours.wait()
    assert eventually(lambda: not running(f'"seconds": {mark}'))


def eventually(holds: object, seconds: float = 5.0) -> bool:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_ordinary_user() -> None:
    """As root, also try what everybody else gets: the path through a user namespace."""
    if os.getuid() != 0:
        pytest.skip("the other tests ran as an ordinary user already")
    with tempfile.TemporaryDirectory() as folder:
        copy_package(Path(folder))
        python = next(pythons_of_others(folder), None)
        if python is None:
            pytest.skip("no Python 3.11 or newer on this machine is open to ordinary users")
        script = (
            "from openmercury.eval.sandbox import BACKENDS, probe, run_python\n"
            "for backend in BACKENDS:\n"
            "    refusal = probe(backend)\n"
            "    print(backend, refusal or run_python('import os; print(os.getuid())', backend=backend).stdout)\n"
        )
        done = as_user([python, "-c", script], folder)
    assert done.returncode == 0, done.stderr
    if "65534" not in done.stdout:
        pytest.skip(f"ordinary users have no sandbox here: {done.stdout}")


def copy_package(folder: Path) -> None:
    folder.chmod(0o755)
    for name in (
        "__init__.py",
        "errors.py",
        "eval/__init__.py",
        "log.py",
        "eval/jail.py",
        "eval/languages.py",
        "eval/sandbox.py",
    ):
        (folder / "openmercury" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, folder / "openmercury" / name)


def pythons_of_others(folder: str) -> Iterator[str]:
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            done = as_user([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], folder)
        except OSError:
            continue
        if done.returncode == 0:
            yield python


def as_user(command: list[str], folder: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env={"PATH": os.defpath}, user=1234, group=1234, extra_groups=[],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_no_backend_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "probe", lambda backend: "broken")
    usable_backend.cache_clear()
    with pytest.raises(SandboxError, match=r"bubblewrap: broken; namespaces: broken\): install bubblewrap"):
        run_python("print(1)")
    usable_backend.cache_clear()


def test_broken_helper_is_no_verdict(monkeypatch: pytest.MonkeyPatch, anywhere: None) -> None:
    monkeypatch.setattr(sandbox, "_jail_source", lambda: "raise SystemExit('no room')")
    with pytest.raises(SandboxError, match="no room"):
        run_python("print(1)")


def test_jail_needs_the_standard_library_only() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", Path(jail.__file__).read_text().replace("    main()", "    pass")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
