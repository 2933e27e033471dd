"""Files of wheels, sdists, npm tarballs and plain zip and tar archives, read in place: nothing is ever extracted.

An archive may lie: names that climb out of it, links, devices, sizes that are not what they say, and streams that
unpack to more than the limit are dropped by reason, and what was whole before a break is kept.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, Self

from openmercury.data import languages, licences
from openmercury.data.sources.base import Drop, Limits, Plan, Raw, RawEdit, Unit, stamp
from openmercury.data.sources.config import ArchiveSource, ReleaseSource
from openmercury.errors import DataError

ZIP, TAR = (".whl", ".zip", ".jar"), (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar")
MAX_MEMBERS = 500_000
MAX_HEADER = 1_000_000  # bytes of a name or of other facts of a tar member, which tarfile reads into memory
# What a member that is broken raises, and what an archive does. ValueError: a name that is no UTF-8.
_MEMBER = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, ValueError)
BROKEN = (*_MEMBER, tarfile.TarError, EOFError, OSError)
_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_METADATA = re.compile(r"[^/]+\.dist-info/METADATA|[^/]+/PKG-INFO|[^/]+/package\.json")


class Member(NamedTuple):
    """One entry: its name, its size as declared, how to open it, or why it may not be opened."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]
    refused: str | None


class _TooMuch(Exception):
    """The archive unpacks to more than its limit."""


def plan(number: int, source: ArchiveSource) -> Plan:
    """One unit an archive, in order of name."""
    paths = find(source.path, number)
    return Plan([Unit(number, path.name, ((str(path), stamp(path)),), path.stat().st_size) for path in paths])


def plan_releases(number: int, source: ReleaseSource) -> Plan:
    """One unit for every two consecutive releases of one package."""
    projects: dict[str, list[tuple[tuple[tuple[int, str], ...], Path]]] = {}
    for path in find(source.path, number):
        project, version = project_version(path.name)
        projects.setdefault(project, []).append((version, path))
    made = Plan()
    for _, releases in sorted(projects.items()):
        ordered = [path for _, path in sorted(releases)]
        for old, new in pairwise(ordered):
            items = ((str(old), stamp(old)), (str(new), stamp(new)))
            made.units.append(Unit(number, f"{old.name} → {new.name}", items, old.stat().st_size + new.stat().st_size))
    return made


def find(path: Path, number: int) -> list[Path]:
    """The archive at a path, or all archives below it. Raises DataError where there is none."""
    paths = [path] if path.is_file() else sorted(path.rglob("*"))
    found = [one for one in paths if one.name.endswith((*ZIP, *TAR)) and one.is_file() and not one.is_symlink()]
    if not found:
        raise DataError(f"{path} holds no archive (.whl, .zip, .tar.gz, .tgz …): correct `path` of source {number + 1}")
    return found


def project_version(name: str) -> tuple[str, tuple[tuple[int, str], ...]]:
    """Project and a version that sorts, from the file name of a wheel, an sdist or an npm tarball."""
    stem = next(name.removesuffix(ending) for ending in (*ZIP, *TAR) if name.endswith(ending))
    found = re.match(r"(.+?)[-_]v?(\d[^-]*)", stem)
    if found is None:
        return stem.lower(), ()
    parts = tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[a-z]+", found[2]))
    return re.sub(r"[-_.]+", "-", found[1]).lower(), parts


def read(unit: Unit, limits: Limits) -> Iterator[Raw | Drop]:
    """The wanted files of one archive."""
    return read_archive(Path(unit.items[0][0]), limits)


def read_releases(unit: Unit, limits: Limits) -> Iterator[RawEdit | Drop]:
    """Files that both releases have under one path, and that differ."""
    old: dict[str, Raw] = {}
    for item in read_archive(Path(unit.items[0][0]), limits):
        if isinstance(item, Raw):
            old[item.path] = item
    for item in read_archive(Path(unit.items[1][0]), limits):
        if isinstance(item, Drop):
            yield item
        elif item.path not in old:
            yield Drop("file of one release only")
        elif old[item.path].data == item.data:
            yield Drop("same in both releases")
        else:
            yield RawEdit(old[item.path], item)


def read_archive(path: Path, limits: Limits) -> Iterator[Raw | Drop]:
    """The wanted files of the archive at `path`; paths leave out the one folder that sdists and npm put around all."""
    folders = licences.Folders()
    try:
        # Read twice, since licences may come after the files they speak for and all files at once may not fit.
        for member in _members(path, limits):
            if member.refused is None and _tells_licence(member.name):
                _learn(folders, member, limits)
        for member in _members(path, limits):
            yield from _read_member(path.name, member, folders, limits)
    except _TooMuch:
        yield Drop("archive unpacks to too much")
    except BROKEN as error:
        # The disk's fault, not the archive's; but EINVAL comes of a place before the beginning.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        yield Drop("broken archive")


def _read_member(archive: str, member: Member, folders: licences.Folders, limits: Limits) -> Iterator[Raw | Drop]:
    bare = languages.needs_shebang(member.name)
    if member.refused is not None:
        yield Drop(member.refused)
    elif limits.skips(member.name):
        yield Drop("path on the list to skip")
    elif not bare and languages.by_name(member.name) not in limits.languages:
        yield Drop("no language of the recipe")
    elif member.size > limits.max_file_bytes:
        yield Drop("file too large")
    else:
        data = _bytes(member, limits)
        if data is None:
            yield Drop("broken file in an archive")
        elif len(data) > limits.max_file_bytes:
            yield Drop("file larger than its archive says")
        elif bare and not data.startswith(b"#!"):
            yield Drop("no language of the recipe")
        else:
            inner = _inner(archive, member.name)
            yield Raw(f"{archive}:{inner}", inner, data, folders.of(member.name))


def _bytes(member: Member, limits: Limits) -> bytes | None:
    """At most one byte more than a file may have; None where this member alone is broken."""
    try:
        file = member.open()
        if file is None:
            return None
        with file:
            return file.read(limits.max_file_bytes + 1)
    except _MEMBER:
        return None


def _tells_licence(name: str) -> bool:
    return licences.is_licence_file(name) or _METADATA.fullmatch(name) is not None


def _learn(folders: licences.Folders, member: Member, limits: Limits) -> None:
    text = (_bytes(member, limits) or b"").decode("utf-8", "replace")
    folder, _, name = member.name.rpartition("/")
    if name == "METADATA":
        folders.declare("", licences.from_metadata(text))
    elif name == "PKG-INFO":
        folders.declare(folder, licences.from_metadata(text))
    elif name == "package.json":
        try:
            package = json.loads(text)
        except (ValueError, RecursionError):
            return
        if isinstance(package, dict):
            folders.declare(folder, licences.from_package_json(package))
    else:
        folders.add_file(member.name, text)


def _inner(archive: str, name: str) -> str:
    return name.partition("/")[2] or name if archive.endswith(TAR) else name


def _members(path: Path, limits: Limits) -> Iterator[Member]:
    return _zip_members(path, limits) if path.name.endswith(ZIP) else _tar_members(path, limits)


def _zip_members(path: Path, limits: Limits) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_MEMBERS:
            raise _TooMuch
        unpacked = 0
        for entry in entries:
            if entry.is_dir():
                continue
            mode = entry.external_attr >> 16
            refused = _climbs(entry.filename) or ("link" if stat.S_ISLNK(mode) else None)
            if entry.flag_bits & 1:
                refused = "encrypted"
            wanted = _tells_licence(entry.filename) or languages.needs_shebang(entry.filename)
            wanted = wanted or languages.by_name(entry.filename) in limits.languages
            if refused is None and wanted and entry.file_size <= limits.max_file_bytes:
                unpacked += entry.file_size
                if unpacked > limits.max_archive_bytes:
                    raise _TooMuch
            yield Member(entry.filename, entry.file_size, partial(archive.open, entry), refused)


def _tar_members(path: Path, limits: Limits) -> Iterator[Member]:
    with _opened(path, limits) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Entry) as archive:
        for number, entry in enumerate(archive):
            if number > MAX_MEMBERS:
                raise _TooMuch
            if entry.isdir():
                continue
            refused = _climbs(entry.name)
            if entry.islnk() or entry.issym():
                refused = "link"
            elif not entry.isfile():
                refused = "no regular file"
            yield Member(entry.name.removeprefix("./"), entry.size, partial(archive.extractfile, entry), refused)


class _Entry(tarfile.TarInfo):
    """A header that does not make tarfile read gigabytes of name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        entry = super().frombuf(buf, encoding, errors)
        if entry.size > MAX_HEADER and entry.type in _HEADERS:
            raise _TooMuch
        return entry


def _climbs(name: str) -> str | None:
    """The reason to refuse names that would lie outside a folder the archive were unpacked into."""
    parts = re.split(r"[/\\]", name)
    return "path leaves the archive" if ".." in parts or name.startswith(("/", "\\")) or ":" in parts[0] else None


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[BinaryIO]:
    """The unpacked stream of a tar archive, which breaks off above its limit."""
    openers: dict[str, Any] = {"gz": gzip.open, "tgz": gzip.open, "xz": lzma.open, "bz2": bz2.open, "tar": open}
    with openers[path.suffix[1:]](path, "rb") as file:
        yield _Counted(file, limits.max_archive_bytes)  # type: ignore[misc]


class _Counted:
    """A stream that raises once more than `left` bytes were read from it."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self.file, self.left = file, left

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _TooMuch
        return data
