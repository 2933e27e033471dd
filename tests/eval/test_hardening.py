"""Attacks in every language, and without walls: each is contained and judged rightly, and the next program runs."""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openmercury.errors import SandboxError
from openmercury.eval import sandbox
from openmercury.eval.sandbox import Backend, Status, Verdict, run, usable_backend
from openmercury.eval.tasks.base import Program
from tests.eval.test_sandbox import eventually, running

MEMORY = 256 << 20


def contained(source: str, language: str, seconds: float, backend: Backend | None = None) -> Verdict:
    """The verdict, after checks that nothing of the program is left and that the next one runs."""
    seconds += time.monotonic_ns() % 997 / 1e6  # marks the command lines of this run
    verdict = run(Program(source, language, seconds, MEMORY), backend)
    if verdict.status == "missing":
        pytest.skip(f"{language}: {verdict.stderr}")
    if backend == "none":  # what is killed by no kernel's hand may take a moment
        assert eventually(lambda: running(f'"seconds": {seconds}') == [])
    assert running(f'"seconds": {seconds}') == []
    assert run(Program("echo next", "bash"), backend).stdout == "next\n"
    return verdict


def java(body: str) -> str:
    return f"class Problem {{ public static void main(String[] a) throws Exception {{ {body} }} }}"


def cpp(body: str) -> str:
    return f"#include <cstdio>\n#include <vector>\n#include <unistd.h>\nint main() {{ {body} }}"


FORKS = "const run = () => { require('child_process').fork(__filename); setTimeout(run, 5); };\nrun();"
GROWING = "std::vector<char> kept; while (true) kept.resize(kept.size() + 65536, 1);"
LISTED = "var kept = new java.util.ArrayList<long[]>(); while (true) kept.add(new long[9999]);"
ATTACKS: list[tuple[str, str, str, set[Status]]] = [
    ("fork bomb", "bash", "bomb() { bomb | bomb & bomb; }; bomb", {"timeout", "failed"}),
    ("fork bomb", "cpp", cpp("while (true) fork();"), {"timeout"}),
    ("fork bomb", "js", FORKS, {"timeout", "memory", "failed"}),
    ("memory bomb", "bash", "x=xxxxxxxxxxxxxxxx; while true; do x=$x$x; done", {"memory"}),
    ("memory bomb", "cpp", cpp(GROWING), {"memory"}),
    ("memory bomb", "js", "const kept = []; while (true) kept.push(Buffer.alloc(1 << 20, 1));", {"memory"}),
    ("heap bomb", "js", "const kept = []; while (true) kept.push([kept.length, 'x'.repeat(9)]);", {"memory"}),
    ("memory bomb", "php", "<?php $kept = []; while (true) $kept[] = str_repeat('x', 65536);", {"memory"}),
    ("memory bomb", "java", java(LISTED), {"memory"}),
    ("endless output", "bash", "yes 'no end to it'", {"failed"}),
    ("endless output", "cpp", cpp('while (true) puts("no end to it");'), {"failed"}),
    ("endless output", "js", "while (true) require('fs').writeSync(1, 'no end to it'.repeat(999));", {"failed"}),
    ("sleeps for ever", "bash", "trap '' TERM INT HUP; while true; do sleep 1000; done", {"timeout"}),
    ("sleeps for ever", "cpp", cpp("while (true) pause();"), {"timeout"}),
    ("sleeps for ever", "js", "setInterval(() => 0, 1000);", {"timeout"}),
    ("sleeps for ever", "java", java("Thread.sleep(1000000);"), {"timeout"}),
]


@pytest.mark.parametrize(
    ("language", "source", "allowed"),
    [pytest.param(*facts, id=f"{facts[0]}-{name}") for name, *facts in ATTACKS],
)
def test_bombs(language: str, source: str, allowed: set[Status], anywhere: None) -> None:
    seconds = 1.0 if "timeout" in allowed else 10.0
    verdict = contained(source, language, seconds)
    assert verdict.status in allowed, verdict
    assert verdict.seconds < seconds + 5


def test_no_network(anywhere: None) -> None:
    verdict = contained("exec 3<>/dev/tcp/192.0.2.1/9", "bash", 5)
    assert (verdict.status, "Network is unreachable" in verdict.stderr) == ("failed", True)
    source = "require('net').connect(9, '192.0.2.1').on('error', error => { console.log(error.code); });"
    assert contained(source, "js", 5).stdout == "ENETUNREACH\n"


def test_only_tmp_can_be_written(anywhere: None, tmp_path: Path) -> None:
    source = f"""
for place in / /usr /etc /dev /proc /root /home /var /usr/local/bin {tmp_path}; do
    if touch "$place/left" 2>/dev/null; then echo "$place"; fi
done
touch /tmp/left left && pwd
"""
    verdict = contained(source, "bash", 5)
    assert verdict.stdout == "/tmp\n"
    assert not (Path(tempfile.gettempdir()) / "left").exists()
    assert list(tmp_path.iterdir()) == []


def test_killing_reaches_only_the_sandbox(anywhere: None) -> None:
    assert contained("kill -9 $PPID 1; kill -STOP $PPID; kill -9 -1; echo here", "bash", 5).stdout == "here\n"
    source = "#include <csignal>\n#include <unistd.h>\nint main() { kill(getppid(), 9); kill(1, 9); kill(-1, 9); }"
    assert contained(source, "cpp", 5).passed
    assert contained("process.kill(process.ppid, 'SIGKILL'); process.kill(1, 'SIGTERM');", "js", 5).passed


def test_secrets_are_out_of_reach(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENMERCURY_SECRET", "sesame")
    verdict = contained("env; cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'; echo all", "bash", 5)
    assert verdict.stdout.endswith("all\n")
    assert "PATH=" in verdict.stdout
    assert "sesame" not in verdict.stdout + verdict.stderr
    assert "SECRET" not in contained("console.log(process.env)", "js", 5).stdout


def test_what_is_left_behind_dies(anywhere: None) -> None:
    mark = f"{random.randrange(10**6, 10**7)}"
    assert contained(f"setsid sleep {mark} & disown; (sleep {mark} &)", "bash", 5).passed
    assert running(f"sleep\0{mark}") == []


# --- without walls ---------------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process makes its temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_walls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    refusal = sandbox.probe("none")
    if refusal is not None:
        pytest.skip(refusal)
    monkeypatch.setattr(sandbox, "probe", lambda backend: None if backend == "none" else "broken")
    usable_backend.cache_clear()
    yield
    usable_backend.cache_clear()


@pytest.mark.usefixtures("no_walls")
def test_running_without_walls_must_be_asked_for_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SandboxError, match="cannot be isolated"):
        usable_backend()
    with caplog.at_level(logging.WARNING, logger="openmercury"):
        assert usable_backend(unsafe=True) == usable_backend(unsafe=True) == "none"
    assert len(caplog.records) == 1
    assert "UNSAFE" in caplog.text


def test_walls_are_taken_where_they_are(anywhere: None) -> None:
    assert usable_backend(unsafe=True) == usable_backend()


HELD = "kept = b'x' * (60 << 20); time.sleep(99)"
WITHOUT_WALLS: list[tuple[str, str, Status]] = [
    ("python", "import os\nassert os.getcwd() == os.environ['TMPDIR'] == os.environ['HOME']\nopen('x', 'w')", "passed"),
    ("python", "assert False", "failed"),
    ("python", "while True: pass", "timeout"),
    ("python", "kept = []\nwhile True: kept.append(bytearray(1 << 20))", "memory"),
    ("python", f"import os, time\nfor _ in range(9):\n    if not os.fork(): {HELD}\ntime.sleep(99)", "memory"),
    ("bash", "for _ in {1..60}; do sleep 99 & done; wait", "failed"),
    ("python", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nwhile True: pass", "failed"),
    ("bash", "yes", "failed"),
    ("bash", "exit 0", "passed"),
    ("bash", '[ -z "$OPENMERCURY_SECRET" ]', "passed"),
]


@pytest.mark.usefixtures("no_walls")
@pytest.mark.parametrize(("language", "source", "status"), WITHOUT_WALLS)
def test_limits_hold_without_walls(
    language: str, source: str, status: Status, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENMERCURY_SECRET", "sesame")
    assert contained(source, language, 1.5, "none").status == status
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("no_walls")
def test_what_is_left_behind_dies_without_walls() -> None:
    mark = f"{random.randrange(10**6, 10**7)}"
    source = f"setsid sleep {mark} & disown; (setsid setsid sleep {mark} &) ; sleep 0.2"
    assert contained(source, "bash", 5, "none").passed
    assert running(f"sleep\0{mark}") == []


# --- many ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_programs_leave_nothing(anywhere: None, temporary: Path) -> None:
    mark = random.randrange(10**6, 10**7)
    seconds = 1.0 + mark / 1e9
    kinds: list[tuple[str, str, Status]] = [
        ("python", "import math\nassert math.factorial(5) == 120", "passed"),
        ("python", "assert False", "failed"),
        ("python", f"open('left-{mark}', 'w').write('x' * 9999)", "passed"),
        ("python", "import os, time\nfor _ in range(3):\n    if os.fork() == 0: time.sleep(99)", "passed"),
        ("bash", f"setsid sleep {mark} & echo left > /tmp/left-{mark}", "passed"),
        ("bash", "printf '\\xff'; exit 7", "failed"),
        ("bash", "yes", "failed"),
        ("js", "console.log([1, 2].map(x => x + 1))", "passed"),
        ("js", "throw new Error('no')", "failed"),
        ("php", "<?php exit(0);", "passed"),
    ] * 10
    kinds[:8] = [
        ("cpp", "int main() { return 0; }", "passed"),
        ("cpp", "int main() { return x; }", "failed"),
        ("java", "class Problem { public static void main(String[] a) { } }", "passed"),
        ("python", "while True: pass", "timeout"),
        ("python", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "timeout"),
        ("bash", "sleep 99", "timeout"),
        ("python", "kept = []\nwhile True: kept.append(bytearray(1 << 20))", "memory"),
        ("js", "const kept = []; while (true) kept.push(Buffer.alloc(1 << 20, 1));", "memory"),
    ]
    assert len(kinds) == 100
    known = [kind for kind in kinds if sandbox.missing(kind[0], usable_backend()) is None]
    wanted = [known[number % len(known)] for number in range(1000)]
    descriptors = set(os.listdir("/proc/self/fd"))
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda kind: run(Program(kind[1], kind[0], seconds, 2 * MEMORY)), wanted))
    print(f"1000 programs at 2 workers: {time.monotonic() - begin:.0f} s, {Counter(v.status for v in verdicts)}")
    wrong = [(kind, verdict) for kind, verdict in zip(wanted, verdicts, strict=True) if verdict.status != kind[2]]
    assert wrong == []
    assert eventually(lambda: running(f'"seconds": {seconds}') + running(f"sleep\0{mark}") == [])
    assert list(temporary.iterdir()) == []
    assert [path for place in ("/tmp", "/dev/shm") for path in Path(place).glob(f"*{mark}*")] == []
    assert set(os.listdir("/proc/self/fd")) == descriptors
