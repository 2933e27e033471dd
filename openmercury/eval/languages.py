"""The languages that the sandbox runs besides Python: how each is compiled and run, and where its tools are.

Tools are looked up on PATH; the jar of Java's tuples, which MultiPL-E imports, is looked up in CLASSPATH, then where
Debian puts it. Commands are those of MultiPL-E (Cassano et al. 2022, arXiv 2208.08227), plus what saves time or memory.
"""

from __future__ import annotations

import functools
import glob
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PYTHON = "python"  # run by the jail itself
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")  # always in the sandbox
JAR = "javatuples.jar"
VERSION_SECONDS = 20.0


@dataclass(frozen=True)
class Language:
    """One row of the table. In commands, a tool stands for its path and `{memory}` for megabytes.

    `reserves`: a virtual machine, which reserves far more address space than it uses and starts many threads.
    """

    title: str
    file: str
    tools: tuple[str, ...]
    version: tuple[str, ...]
    run: tuple[str, ...]
    hello: str
    compile: tuple[str, ...] = ()
    reserves: bool = False
    settings: tuple[str, ...] = ()  # patterns of files outside SYSTEM that the tools read


@dataclass(frozen=True)
class Toolchain:
    """Where the tools of a language are, and what the sandbox must show of the file system for them."""

    paths: Mapping[str, str]
    binds: tuple[str, ...]


# The serial collector and no performance file: threads and memory for one short run. Heaps may grow to the limit, so
# that the jail, which counts the memory, gives the verdict.
_JVM = ("-XX:+UseSerialGC", "-XX:-UsePerfData")
# Without the second of the just-in-time compilers, which costs more than it gives in so short a run.
_JAVAC = (*(f"-J{flag}" for flag in _JVM), "-J-XX:TieredStopAtLevel=1")
_NODE = ("node", "--max-old-space-size={memory}")

LANGUAGES: dict[str, Language] = {
    "cpp": Language(
        title="C++",
        file="program.cpp",
        tools=("g++",),
        version=("g++", "--version"),
        compile=("g++", "-std=c++17", "program.cpp", "-o", "program"),
        run=("./program",),
        hello="int main() {}",
    ),
    "java": Language(
        title="Java",
        file="Problem.java",
        tools=("javac", "java", JAR),
        version=("javac", "-version"),
        compile=("javac", *_JAVAC, "-encoding", "UTF8", "-cp", JAR, "Problem.java"),
        run=("java", *_JVM, "-Xmx{memory}m", "-ea", "-cp", f".:{JAR}", "Problem"),
        hello="class Problem { public static void main(String[] args) {} }",
        reserves=True,
        settings=("/etc/java-*-openjdk",),
    ),
    "js": Language(
        title="JavaScript",
        file="program.js",
        tools=("node",),
        version=("node", "--version"),
        run=(*_NODE, "program.js"),
        hello="",
        reserves=True,
    ),
    "ts": Language(
        title="TypeScript",
        file="program.ts",
        tools=("tsc", "node"),
        version=("node", "tsc", "--version"),
        # Its own declarations are not checked: that halves the time, and no verdict depends on it.
        compile=(*_NODE, "tsc", "--target", "esnext", "--skipLibCheck", "program.ts"),
        run=(*_NODE, "program.js"),
        hello="",
        reserves=True,
    ),
    "php": Language(
        title="PHP",
        file="program.php",
        tools=("php",),
        version=("php", "--version"),
        run=("php", "-d", "memory_limit=-1", "-d", "display_errors=0", "-d", "log_errors=1", "program.php"),
        hello="",
        settings=("/etc/php",),
    ),
    "bash": Language(
        title="Bash",
        file="program.sh",
        tools=("bash",),
        version=("bash", "--version"),
        run=("bash", "program.sh"),
        hello="",
    ),
}


@functools.cache
def find(name: str) -> Toolchain | None:
    """The tools of a language of the table; None where one of them is not installed."""
    language = LANGUAGES[name]
    paths = {tool: _jar() if tool == JAR else shutil.which(tool) for tool in language.tools}
    found = {tool: _visible(path) for tool, path in paths.items() if path is not None}
    if len(found) < len(paths):
        return None
    settings = [path for pattern in language.settings for path in glob.glob(pattern)]
    return Toolchain(found, (*{prefix for path in found.values() for prefix in _prefix(path)}, *settings))


def absent(name: str) -> str:
    """What of a language is not installed, for a message."""
    found = [tool for tool in LANGUAGES[name].tools if (_jar() if tool == JAR else shutil.which(tool)) is None]
    return f"{' and '.join(found)} not found on PATH{' or CLASSPATH' if JAR in found else ''}"


def command(words: tuple[str, ...], tools: Toolchain, memory_bytes: int) -> list[str]:
    """A command of the table, with paths and numbers put in."""
    filled = [word.format(memory=max(1, memory_bytes >> 20)) for word in words]
    filled = [tools.paths.get(word, word) for word in filled]
    return [word.replace(f".:{JAR}", f".:{tools.paths[JAR]}") if JAR in tools.paths else word for word in filled]


@functools.cache
def version(name: str) -> str | None:
    """The first line of what a language's compiler or interpreter says of itself; None where it is not installed."""
    if name == PYTHON:
        return f"Python {platform.python_version()}"
    tools = find(name)
    if tools is None:
        return None
    words = command(LANGUAGES[name].version, tools, 256 << 20)
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=VERSION_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = (done.stdout or done.stderr).strip()
    return said.splitlines()[0] if done.returncode == 0 and said else None


def versions() -> dict[str, str | None]:
    """Language → version, or None: its toolchain is not installed, and nothing in this language is run."""
    return {name: version(name) for name in (PYTHON, *LANGUAGES)}


def _jar() -> str | None:
    """The jar of Java's tuples."""
    named = [
        path for path in os.environ.get("CLASSPATH", "").split(os.pathsep) if "javatuples" in os.path.basename(path)
    ]
    return next((path for path in (*named, f"/usr/share/java/{JAR}") if os.path.isfile(path)), None)


def _visible(path: str) -> str:
    """The path by which a tool is called in the sandbox: links are resolved where they lie outside the system."""
    return path if _in_system(path) else os.path.realpath(path)


def _prefix(path: str) -> Iterator[str]:
    """The folder that a tool outside the system is installed in, or the tool alone where that folder is a home."""
    real = Path(path).resolve()
    if not _in_system(str(real)):
        prefix = real.parents[1] if real.parent.name == "bin" else real.parent
        home = Path(os.path.expanduser("~")).resolve()  # unlike Path.home, no error for a user without a name
        yield str(real if home.is_relative_to(prefix) or prefix == Path("/") else prefix)


def _in_system(path: str) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in SYSTEM)
