"""Running generated programs where they can do no harm.

The program gets its own processes, network (none), IPC and file system: the interpreter and the system's libraries
read-only, an empty /tmp, its own /proc, and an environment that holds nothing of ours. Time, memory, CPU, file size,
open files and processes are limited, and everything it started is dead when `run` returns; compilers run there too.
Two backends build this: bubblewrap where it is installed, else the namespaces of Linux directly. The kernel is the
wall: this is made for the accidents of generated code, and is no match for an attacker who owns a kernel exploit.
A third backend, "none", has the limits and no walls; nothing takes it by itself.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from openmercury.errors import SandboxError
from openmercury.eval import jail, languages
from openmercury.eval.languages import LANGUAGES, PYTHON, SYSTEM
from openmercury.log import get_logger

if TYPE_CHECKING:
    from openmercury.eval.tasks.base import Program

Backend = Literal["bubblewrap", "namespaces", "none"]
Status = Literal["passed", "failed", "timeout", "memory", "missing"]

BACKENDS: tuple[Backend, ...] = ("bubblewrap", "namespaces")  # those that isolate
STATUS: dict[int, Status] = {
    jail.PASSED: "passed",
    jail.FAILED: "failed",
    jail.TIMEOUT: "timeout",
    jail.MEMORY: "memory",
}

SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# All that the program sees of an environment. One thread, or numpy reserves memory for each core of the machine; a
# fixed hash seed, or the verdict on a program that prints a set would change from run to run.
ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
}
PRIVATE_UIDS = range(0x70000000, 0x7F000000)  # above all that systemd and container tools hand out
GRACE_SECONDS = 10.0  # for the helper to start and end
# A compiler is ours, and gets what it needs: on two loaded cores the standard headers of C++ take some seconds.
COMPILE_SECONDS, COMPILE_BYTES = 60.0, 1 << 30
SHOWN_BYTES = 8192

PROBE = """
import os, socket
assert os.getppid() == 1, "other processes are in sight"
assert os.getuid() != 0, "the program runs as root"
open("/tmp/probe", "w").close()
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9))
    raise AssertionError("there is a network")
except OSError:
    pass
try:
    open("/usr/probe", "w").close()
    raise AssertionError("the file system can be written")
except OSError:
    pass
"""


@dataclass(frozen=True)
class Verdict:
    """How a program ended. Long output is cut in the middle; times in seconds, compilation included.

    "passed": Python ran to its last line, a program of another language to exit status 0. "failed" may be a compiler's
    verdict. "missing": the language's toolchain is not on this machine, so that nothing was run.
    """

    status: Status
    stdout: str
    stderr: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the program did what it should."""
        return self.status == "passed"


def run(program: Program, backend: Backend | None = None) -> Verdict:
    """Run a program and wait until nothing of it is left.

    Python runs as a module (`__name__` is not "__main__"), and leaving early counts as failed, even by exit(0). The
    program's memory is bounded as counted every few hundredths of a second, over all its processes; except for virtual
    machines, the address space of each is bounded as well. Raises SandboxError where no backend works, and for an
    unknown language; `backend` asks for one of them.
    """
    return _verdict(program.source, program.language, program.timeout, program.memory_bytes, backend)


def run_python(
    program: str, *, timeout: float = 10.0, memory_bytes: int = 1 << 30, backend: Backend | None = None
) -> Verdict:
    """`run`, for the source of a Python program."""
    return _verdict(program, PYTHON, timeout, memory_bytes, backend)


@functools.cache
def usable_backend(unsafe: bool = False) -> Backend:
    """The first backend that works here, tried out once per process; raises SandboxError when none does.

    `unsafe` takes "none" instead of raising, and says so: the program may then read and write all that you may.
    """
    refusals = {}
    for backend in BACKENDS:
        refusal = probe(backend)
        if refusal is None:
            return backend
        refusals[backend] = refusal
    told = "; ".join(f"{backend}: {refusal}" for backend, refusal in refusals.items())
    if unsafe and probe("none") is None:
        get_logger().warning(
            f"UNSAFE: generated code cannot be isolated on this machine ({told}), and runs as you, with limits but "
            "without walls: it can read your files and secrets, change them, and use the network"
        )
        return "none"
    raise SandboxError(
        f"generated code cannot be isolated on this machine ({told}): install bubblewrap, or allow user namespaces"
    )


@functools.cache
def missing(language: str, backend: Backend) -> str | None:
    """Why programs of a language cannot be run, in a few words; None where they can: tried out once per process."""
    if language == PYTHON:
        return None
    if language not in LANGUAGES:
        raise SandboxError(f"no language {language!r} in the sandbox: it runs {', '.join((PYTHON, *LANGUAGES))}")
    if languages.find(language) is None:
        return languages.absent(language)
    status, stdout, stderr, _ = _run(backend, LANGUAGES[language].hello, language, COMPILE_SECONDS, 1 << 30)
    if status == jail.PASSED:
        return None
    said = (stderr or stdout).splitlines() or [f"exit status {status}"]
    return f"an empty program does not run: {said[0]}"


def probe(backend: Backend) -> str | None:
    """Why a backend does not work here, in a few words; None where it does."""
    if sys.platform != "linux":
        return "needs Linux"
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        return "not installed"
    source = PROBE if backend in BACKENDS else ""
    status, _, stderr, _ = _run(backend, source, PYTHON, 20.0, 1 << 30)
    return None if status == jail.PASSED else _last_line(stderr) or f"exit status {status}"


# --- one run ---------------------------------------------------------------------------------------------------------


def _verdict(source: str, language: str, timeout: float, memory_bytes: int, backend: Backend | None) -> Verdict:
    chosen = usable_backend() if backend is None else backend
    lacking = missing(language, chosen)
    if lacking is not None:
        return Verdict("missing", "", lacking, 0.0)
    status, stdout, stderr, seconds = _run(chosen, source, language, timeout, memory_bytes)
    if chosen == "none" and status < 0:  # without walls, the program can kill the one who watches it
        status = jail.FAILED
    if status not in STATUS:
        raise SandboxError(
            f"the sandbox ({chosen}) broke down ({_last_line(stderr) or f'exit status {status}'}): "
            "check free memory and the limit on processes, then run again"
        )
    return Verdict(STATUS[status], stdout, stderr, seconds)


def _run(
    backend: Backend, source: str, language: str, timeout: float, memory_bytes: int
) -> tuple[int, str, str, float]:
    """Exit status of the jail, stdout, stderr, seconds."""
    begin = time.monotonic()
    # Plain files, not pipes: no reader can fall behind, and the limit on file size is the limit on output.
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        _lifeline() as lifeline,
        contextlib.nullcontext("/") if backend in BACKENDS else tempfile.TemporaryDirectory() as folder,
    ):
        stdin.write(source.encode("utf-8", "surrogatepass"))
        stdin.seek(0)
        steps, binds = _steps(language, timeout, memory_bytes)
        plan = {
            "enter": backend == "namespaces",
            "walls": backend in BACKENDS,
            "uid": random.SystemRandom().choice(PRIVATE_UIDS),  # each run counts its own processes
            "lifeline": lifeline,
            "file": None if language == PYTHON else LANGUAGES[language].file,
            "steps": steps,
            **file_system(binds),
        }
        helper = subprocess.Popen(
            _command(backend, plan),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(lifeline,),
            env=ENVIRONMENT if backend in BACKENDS else ENVIRONMENT | {"HOME": folder, "TMPDIR": folder},
            cwd=folder,
            start_new_session=True,
        )
        try:
            status = helper.wait(sum(step["seconds"] for step in steps) + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            status = jail.TIMEOUT
        finally:
            if helper.returncode is None or helper.returncode < 0:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(helper.pid, signal.SIGKILL)
                helper.wait()
        return status, _shown(stdout), _shown(stderr), time.monotonic() - begin


def _steps(language: str, timeout: float, memory_bytes: int) -> tuple[list[jail.Step], tuple[str, ...]]:
    """What the jail does in turn, and the files it needs for that."""
    program: jail.Step = {
        "name": "program", "command": None, "seconds": timeout, "memory": memory_bytes, "reserves": False,
    }  # fmt: skip
    if language == PYTHON:
        return [program], ()
    tools, row = languages.find(language), LANGUAGES[language]
    assert tools is not None
    program |= {"command": languages.command(row.run, tools, memory_bytes), "reserves": row.reserves}
    if not row.compile:
        return [program], tools.binds
    compiler: jail.Step = program | {
        "name": "compiler",
        "command": languages.command(row.compile, tools, COMPILE_BYTES),
        "seconds": COMPILE_SECONDS,
        "memory": COMPILE_BYTES,
    }
    return [compiler, program], tools.binds


@contextlib.contextmanager
def _lifeline() -> Iterator[int]:
    """The reading end of a pipe that breaks when this block is left, or this process dies."""
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(ours)
        os.close(theirs)


def _command(backend: Backend, plan: dict[str, Any]) -> list[str]:
    # The source goes in by -c: the package itself is not in the sandbox.
    python = [sys.executable, "-s", "-P", "-c", _jail_source(), json.dumps(plan)]
    return [*_bubblewrap(plan), "--", *python] if backend == "bubblewrap" else python


def _bubblewrap(plan: dict[str, Any]) -> list[str]:
    command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    command += ["--as-pid-1", "--cap-drop", "ALL"]
    if os.getuid() == 0:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # for the jail to give up root
    else:
        command += ["--unshare-user", "--uid", str(jail.NOBODY), "--gid", str(jail.NOBODY)]
    command += ["--proc", "/proc", "--perms", "1777", "--tmpfs", "/tmp"]
    above = {str(folder) for path in (*plan["binds"], *plan["devices"]) for folder in Path(path).parents}
    for path in sorted(above - {"/", "/tmp"}):
        command += ["--perms", "0755", "--dir", path]  # by itself, bwrap may close them to all but root
    for path in plan["binds"]:
        command += ["--ro-bind", path, path]
    for path in plan["devices"]:
        command += ["--dev-bind", path, path]
    for path, target in plan["links"].items():
        command += ["--symlink", target, path]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp"]


@functools.cache
def _jail_source() -> str:
    return Path(jail.__file__).read_text(encoding="utf-8")


@functools.cache
def file_system(more: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the sandbox is made of: read-only `binds` and `more` of them, `devices`, and `links` (path → target)."""
    links = {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)}
    links |= {"/dev/shm": "/tmp", "/dev/fd": "/proc/self/fd"}  # Bash makes <(pipes) of the second
    python = Path(sys.executable).resolve().parents[1]
    wanted = {path for path in (*SYSTEM, *SYSTEM_FILES) if os.path.exists(path) and path not in links}
    wanted |= {os.path.abspath(prefix) for prefix in (sys.prefix, sys.base_prefix)}
    wanted |= {os.path.realpath(prefix) for prefix in (sys.prefix, sys.base_prefix, python)} | set(more)
    binds: list[str] = []
    for path in sorted(wanted):  # parents come before what lies below them, which is there with them
        if not any(Path(path).is_relative_to(bound) for bound in (*binds, *links)):
            binds.append(path)
    return {"binds": binds, "devices": [path for path in DEVICES if os.path.exists(path)], "links": links}


def _shown(file: IO[bytes]) -> str:
    """The output, its middle left out where it is long."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size <= SHOWN_BYTES:
        return file.read().decode(errors="replace")
    head = file.read(SHOWN_BYTES // 2)
    file.seek(-(SHOWN_BYTES // 2), os.SEEK_END)
    cut = f"\n… {size - SHOWN_BYTES} bytes left out …\n"
    return head.decode(errors="replace") + cut + file.read().decode(errors="replace")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
