"""In every language the verdict is right, and what is not installed is missing, not failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from openmercury.errors import SandboxError
from openmercury.eval import languages, sandbox
from openmercury.eval.languages import LANGUAGES
from openmercury.eval.sandbox import Verdict
from openmercury.eval.tasks.base import Program


@pytest.fixture
def looked_up_again() -> Iterator[None]:
    """What is remembered of toolchains is forgotten, before the test and after."""
    remembered = (languages.find, languages.version, sandbox.missing)
    for memory in remembered:
        memory.cache_clear()
    yield
    for memory in remembered:
        memory.cache_clear()


def verdict_on(language: str, source: str) -> Verdict:
    verdict = sandbox.run(Program(source, language))
    if verdict.status == "missing":
        pytest.skip(f"{language}: {verdict.stderr}")
    return verdict


# Prints "é", and a byte that is no UTF-8 where it can; reads all of stdin; ends with the status of its last word.
SOURCES = {
    "python": "import sys\nassert sys.stdin.read() == ''\n"
    "sys.stdout.buffer.write(b'\\xc3\\xa9\\xff')\nassert not {status}",
    "cpp": "#include <cstdio>\nint main() {{\nif (getchar() != EOF) return 9;\n"
    'puts("\\xc3\\xa9\\xff");\nreturn {status};\n}}',
    "java": "class Problem {{ public static void main(String[] args) throws Exception {{\n"
    "if (System.in.read() != -1) System.exit(9);\n"
    "System.out.write(new byte[] {{(byte) 0xc3, (byte) 0xa9, (byte) 0xff}});\n"
    "System.out.flush();\nSystem.exit({status});\n}} }}",
    "js": "if (require('fs').readFileSync(0).length) process.exit(9);\n"
    "process.stdout.write(Buffer.from([0xc3, 0xa9, 0xff]));\nprocess.exit({status});",
    "ts": "declare var process: any, Buffer: any;\nconst bytes: number[] = [0xc3, 0xa9, 0xff];\n"
    "process.stdout.write(Buffer.from(bytes));\nprocess.exit({status});",
    "php": '<?php\nif (stream_get_contents(STDIN) !== "") exit(9);\necho "\\xc3\\xa9\\xff";\nexit({status});',
    "bash": "read -r line && exit 9\nprintf '\\xc3\\xa9\\xff' | cat\ncat <(exit 0)\nexit {status}",
}


@pytest.mark.parametrize("language", SOURCES)
@pytest.mark.parametrize("status", [0, 1, 40])  # 40: how the jail says "passed" to us
def test_exit_status_decides_and_output_need_not_be_text(language: str, status: int, anywhere: None) -> None:
    verdict = verdict_on(language, SOURCES[language].format(status=status))
    assert verdict.status == ("failed" if status else "passed"), verdict.stderr
    assert verdict.stdout.strip() == "é\ufffd"
    assert bool(verdict.stderr) == bool(status)


def test_compilers_have_limits_too(monkeypatch: pytest.MonkeyPatch, anywhere: None) -> None:
    verdict_on("cpp", "int main() {}")
    monkeypatch.setattr(sandbox, "COMPILE_SECONDS", 0.5)
    endless = "#include __FILE__\n" * 2 + "int main() {}"
    assert verdict_on("cpp", endless).status in ("failed", "timeout")
    recursive = "template <long n> struct A { A<n + 1> *a; A<n * 2> b; }; A<1> a;\nint main() {}"
    assert verdict_on("cpp", recursive).status in ("failed", "timeout")


def test_versions_are_told() -> None:
    versions = languages.versions()
    assert list(versions) == ["python", *LANGUAGES]
    assert versions["bash"] is None or "bash" in versions["bash"]
    assert all(told is None or "\n" not in told for told in versions.values())


@pytest.mark.usefixtures("looked_up_again")
def test_what_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, anywhere: None) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in LANGUAGES:
        verdict = sandbox.run(Program("", name))
        assert (verdict.status, verdict.passed, verdict.seconds) == ("missing", False, 0.0)
        assert "not found on PATH" in verdict.stderr
    assert languages.versions() == {"python": languages.version("python")} | dict.fromkeys(LANGUAGES)


@pytest.mark.usefixtures("looked_up_again")
def test_tools_may_lie_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, anywhere: None) -> None:
    """An interpreter outside the system's folders is shown to the sandbox with what it is installed with."""
    tool(tmp_path / "js", 'cat "$(dirname "$0")/../words"; shift; exec /bin/sh "$1"')
    (tmp_path / "js" / "words").write_text("words\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/js/bin")
    assert sandbox.run(Program("echo run", "js")).stdout == "words\nrun\n"


@pytest.mark.usefixtures("looked_up_again")
def test_tools_that_do_not_work_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, anywhere: None) -> None:
    tool(tmp_path / "js", "echo 'no licence' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/js/bin")
    verdict = sandbox.run(Program("", "js"))
    assert verdict.status == "missing"
    assert verdict.stderr == "an empty program does not run: no licence"
    assert languages.version("js") is None


@pytest.mark.usefixtures("looked_up_again")
def test_a_home_is_not_shown_for_a_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, anywhere: None) -> None:
    tool(tmp_path, 'shift; exec /bin/sh "$1"')
    (tmp_path / "secret").write_text("sesame")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    verdict = sandbox.run(Program(f"ls {tmp_path} {tmp_path}/bin", "js"))
    assert verdict.passed
    assert "node" in verdict.stdout
    assert "secret" not in verdict.stdout


def tool(prefix: Path, script: str) -> None:
    """A `node` of our own, which is called with one option before the file."""
    (prefix / "bin").mkdir(parents=True)
    path = prefix / "bin" / "node"
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def test_unknown_language_is_told(anywhere: None) -> None:
    with pytest.raises(SandboxError, match="no language 'cobol' in the sandbox: it runs python, cpp, java"):
        sandbox.run(Program("", "cobol"))
