"""Files of a folder tree, in batches; what holds for site-packages is read from its METADATA and RECORD files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from openmercury.data import languages, licences
from openmercury.data.sources.base import Drop, Limits, Plan, Raw, Unit, stamp
from openmercury.data.sources.config import FolderSource
from openmercury.errors import DataError

BATCH_BYTES, BATCH_FILES = 8_000_000, 2_000


def plan(number: int, source: FolderSource, limits: Limits) -> Plan:
    """Batches of files in order of path. Raises DataError when the folder is missing."""
    if not source.path.is_dir():
        raise DataError(f"{source.path} is not a folder: correct `path` of source {number + 1}")
    made, wanted = Plan(), []
    folders = licences.Folders(source.licence)
    for path in _walk(source.path, made):
        name = path.relative_to(source.path).as_posix()
        if licences.is_licence_file(name):
            folders.add_file(name, _text(path))
        elif name.endswith(".dist-info/METADATA"):
            _declare(folders, name, path)
        if limits.skips(name):
            made.drops["path on the list to skip"] += 1
        elif languages.by_name(name) in limits.languages or languages.needs_shebang(name):
            wanted.append((name, stamp(path)))
        else:
            made.drops["no language of the recipe"] += 1
    items = [(name, folders.of(name), told) for name, told in wanted]
    made.units += batches(number, source.path.name, items, [int(told.split("-")[0]) for _, told in wanted])
    return made


def batches(number: int, name: str, items: Sequence[tuple[str, ...]], sizes: Sequence[int]) -> Iterator[Unit]:
    """Runs of items that stay below BATCH_BYTES and BATCH_FILES (a single larger one excepted)."""
    start = size = 0
    for at, more in enumerate(sizes):
        if at > start and (size + more > BATCH_BYTES or at - start == BATCH_FILES):
            yield Unit(number, f"{name}[{start}:{at}]", tuple(items[start:at]), size)
            start, size = at, 0
        size += more
    if items[start:]:
        yield Unit(number, f"{name}[{start}:{len(items)}]", tuple(items[start:]), size)


def read(source: FolderSource, unit: Unit, limits: Limits) -> Iterator[Raw | Drop]:
    """The files of one batch."""
    for name, licence, _ in unit.items:
        path = source.path / name
        try:
            with path.open("rb") as file:
                if languages.needs_shebang(name) and file.read(2) != b"#!":
                    yield Drop("no language of the recipe")
                    continue
                file.seek(0)
                data = file.read(limits.max_file_bytes + 1)
        except OSError:
            yield Drop("file cannot be read")
            continue
        if len(data) > limits.max_file_bytes:
            yield Drop("file too large")
        else:
            yield Raw(f"{source.path.name}:{name}", name, data, licence)


def _walk(top: Path, made: Plan) -> Iterator[Path]:
    """Regular files in order of path; links are never followed."""
    for folder, below, names in os.walk(top):
        for name in [name for name in below if os.path.islink(os.path.join(folder, name))]:
            below.remove(name)
            made.drops["link"] += 1
        below[:] = sorted(name for name in below if name != ".git")
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink():
                made.drops["link"] += 1
            elif path.is_file():
                yield path
            else:
                made.drops["no regular file"] += 1


def _declare(folders: licences.Folders, name: str, metadata: Path) -> None:
    """An installed package speaks for the folders of which it owns files."""
    expression = licences.from_metadata(_text(metadata)) or licences.UNKNOWN
    home = name.removesuffix(".dist-info/METADATA").rpartition("/")[0]
    record = metadata.with_name("RECORD")
    owned = {line.rsplit(",", 2)[0].strip('"').rpartition("/")[0] for line in _text(record).splitlines()}
    for folder in sorted(folder for folder in owned if folder and not folder.startswith((".", "/"))):
        folders.declare(f"{home}/{folder}".lstrip("/"), expression)


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:4_000_000].decode("utf-8", "replace")
    except OSError:
        return ""
