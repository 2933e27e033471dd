"""Files of a git repository at HEAD, and its history as edits: what a commit changed.

Repositories come from strangers, and their own configuration may name programs: hooks, external diffs, checks of
signatures and fetching of missing objects are all off.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from openmercury.data import languages, licences
from openmercury.data.sources.base import Drop, Limits, Plan, Raw, RawEdit, Unit
from openmercury.data.sources.config import GitSource
from openmercury.data.sources.folder import batches
from openmercury.errors import DataError

COMMITS_A_UNIT = 200
MISSING = "not in this clone"  # as of a partial or shallow one


def plan(number: int, source: GitSource, limits: Limits) -> Plan:
    """Batches of blobs of HEAD, or runs of commits. Raises DataError when `path` is no repository with a commit."""
    head = _git(source.path, "rev-parse", "--verify", "HEAD", problem=number).strip().decode()
    made, wanted, sizes = Plan(), [], []
    folders = licences.Folders(source.licence)
    for line in _git(source.path, "ls-tree", "-r", "-l", "-z", head).decode("utf-8", "replace").split("\0")[:-1]:
        facts, _, name = line.partition("\t")
        mode, kind, blob, size = facts.split()
        if kind != "blob" or mode == "120000":
            made.drops["link" if kind == "blob" else "submodule"] += 1
            continue
        if not size.isdigit():  # as git says it: BAD
            made.drops[MISSING] += 1
            continue
        if licences.is_licence_file(name) and int(size) < 200_000:
            folders.add_file(name, _git(source.path, "cat-file", "blob", blob).decode("utf-8", "replace"))
        reason = _reason(name, int(size), limits)
        if reason is None:
            wanted.append((name, blob))
            sizes.append(int(size))
        elif source.give == "files":
            made.drops[reason] += 1
    if source.give == "files":
        items: list[tuple[str, ...]] = [(name, folders.of(name), blob) for name, blob in wanted]
        made.units += batches(number, source.path.name, items, sizes)
        return made
    # What the root says holds for all of history, as files of old commits may lie elsewhere today.
    log = _git(source.path, "rev-list", "--no-merges", f"--max-count={source.commits}", head).decode().split()
    for start in range(0, len(log), COMMITS_A_UNIT):
        commits = tuple((commit, folders.of("x")) for commit in log[start : start + COMMITS_A_UNIT])
        made.units.append(Unit(number, f"{source.path.name} history[{start}:{start + len(commits)}]", commits, 0))
    return made


def read(source: GitSource, unit: Unit, limits: Limits) -> Iterator[Raw | RawEdit | Drop]:
    """The files of one batch, or the edits of some commits."""
    with _Blobs(source.path) as blobs:
        if source.give == "files":
            for name, licence, blob in unit.items:
                yield Raw(f"{source.path.name}:{name}", name, blobs.read(blob), licence)
            return
        for commit, licence in unit.items:
            yield from _edits(source, commit, licence, blobs, limits)


def _edits(source: GitSource, commit: str, licence: str, blobs: _Blobs, limits: Limits) -> Iterator[RawEdit | Drop]:
    """Files that one commit modified; a commit over more than `max_files` of them says little about each."""
    # Not `git show`, which looks at more of the configuration.
    told = _git(source.path, "diff-tree", "-r", "-z", "--no-commit-id", "--diff-filter=M", "--no-renames", commit)
    fields = told.decode("utf-8", "replace").split("\0")
    changed = list(zip(fields[::2], fields[1::2], strict=False))
    if len(changed) > source.max_files:
        yield Drop("commit over too many files")
        return
    for facts, name in changed:
        before, after = facts.split()[2:4]
        old, new = blobs.size(before), blobs.size(after)
        reason = MISSING if old is None or new is None else _reason(name, max(old, new), limits)
        if reason is not None:
            yield Drop(reason)
            continue
        place = f"{source.path.name}@{commit[:12]}"
        sides = [
            Raw(f"{place}{mark}:{name}", name, blobs.read(blob), licence) for mark, blob in (("^", before), ("", after))
        ]
        yield RawEdit(sides[0], sides[1])


def _reason(name: str, size: int, limits: Limits) -> str | None:
    """Why a blob is not read, or None."""
    if limits.skips(name):
        return "path on the list to skip"
    if languages.by_name(name) not in limits.languages:
        return "no language of the recipe"
    return "file too large" if size > limits.max_file_bytes else None


def _command(repository: Path, arguments: Sequence[str]) -> list[str]:
    quiet = ("-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
    return ["git", "-C", str(repository), *quiet, "--no-pager", *arguments]


def _environment() -> dict[str, str]:
    # Before 2.45 git knows no GIT_NO_LAZY_FETCH: without an allowed protocol it cannot fetch either.
    return {**os.environ, "GIT_CONFIG_NOSYSTEM": "1", "GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "",
            "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}  # fmt: skip


def _git(repository: Path, *arguments: str, problem: int | None = None) -> bytes:
    try:
        done = subprocess.run(_command(repository, arguments), capture_output=True, env=_environment(), check=False)
    except FileNotFoundError:
        raise DataError("git is not installed: install it, or leave git sources out of the recipe") from None
    if done.returncode != 0:
        told = " ".join(done.stderr.decode("utf-8", "replace").split())[:200]
        where = "" if problem is None else f": correct `path` of source {problem + 1}"
        raise DataError(f"git cannot read {repository} ({told}){where or ': check the repository with `git fsck`'}")
    return done.stdout


class _Blobs:
    """Contents of blobs by name, through one `git cat-file` process."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository

    def __enter__(self) -> _Blobs:
        self.process = subprocess.Popen(
            _command(self.repository, ("cat-file", "--batch-command")),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_environment(),
        )  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.ask: IO[bytes] = self.process.stdin
        self.answer: IO[bytes] = self.process.stdout
        return self

    def __exit__(self, *error: object) -> None:
        self.ask.close()
        self.answer.close()
        self.process.wait()

    def size(self, blob: str) -> int | None:
        """Bytes of a blob; None where the repository lacks it."""
        return self._head("info", blob)

    def read(self, blob: str) -> bytes:
        """Content of a blob that is there. Raises DataError where it is broken."""
        size = self._head("contents", blob)
        if size is None:
            raise DataError(f"git cannot read {blob} of {self.repository}: check the repository with `git fsck`")
        data = self.answer.read(size)
        self.answer.read(1)  # a line end
        return data

    def _head(self, what: str, blob: str) -> int | None:
        self.ask.write(f"{what} {blob}\n".encode())
        self.ask.flush()
        fields = self.answer.readline().split()
        return int(fields[2]) if len(fields) == 3 else None
