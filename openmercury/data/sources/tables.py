"""Rows of JSON Lines and Parquet files: files of code in columns, or edits with a before and an after column."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

from openmercury.data import languages, licences
from openmercury.data.sources.base import Drop, Limits, Plan, Raw, RawEdit, Unit, stamp
from openmercury.data.sources.config import HubSource, JsonlSource, ParquetSource
from openmercury.errors import DataError

RANGE_BYTES = 32_000_000  # of a plain .jsonl that one unit reads
Table: TypeAlias = JsonlSource | ParquetSource | HubSource
JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst", ".json.gz")
UNPACKING = (OSError, EOFError, lzma.LZMAError, zlib.error)  # what a packed file that is broken raises
NO_ARROW = "reading Parquet and .zst files needs pyarrow: pip install 'openmercury[data]'"


def plan_jsonl(number: int, source: JsonlSource) -> Plan:
    """Byte ranges of plain files; a compressed one is read from its beginning and therefore in one piece."""
    made = Plan()
    for path in _files(source.path, JSONL, number):
        size = path.stat().st_size
        step = RANGE_BYTES if path.suffix in (".jsonl", ".ndjson") else max(1, size)
        for start in range(0, max(1, size), step):
            end = min(size, start + step)
            name = path.name if step >= size else f"{path.name}[{start}:{end}]"
            made.units.append(Unit(number, name, ((str(path), stamp(path), str(start), str(end)),), end - start))
    return made


def plan_parquet(number: int, source: ParquetSource) -> Plan:
    """One unit a row group."""
    made = Plan()
    for path in _files(source.path, (".parquet",), number):
        with path.open("rb") as file:
            groups = parquet_groups(file, str(path))
        for group, size in enumerate(groups):
            made.units.append(Unit(number, f"{path.name}[{group}]", ((str(path), stamp(path), str(group)),), size))
    return made


def read_jsonl(source: JsonlSource, unit: Unit, limits: Limits) -> Iterator[Raw | RawEdit | Drop]:
    """The rows of one unit. A line belongs to the range that its first byte lies in."""
    name, _, start, end = unit.items[0]
    path = Path(name)
    if path.suffix in (".jsonl", ".ndjson"):
        with path.open("rb") as file:
            yield from jsonl_rows(file, source, path.name, limits, int(start), int(end))
        return
    with path.open("rb") as file:
        yield from packed_rows(file, source, path.name, limits)


def read_parquet(source: ParquetSource, unit: Unit, limits: Limits) -> Iterator[Raw | RawEdit | Drop]:
    """The rows of one row group."""
    name, _, group = unit.items[0]
    with Path(name).open("rb") as file:
        yield from parquet_rows(file, source, Path(name).name, int(group), limits)


def open_packed(file: IO[bytes], name: str) -> IO[bytes]:
    """The unpacked stream of a file, by its name."""
    if name.endswith(".gz"):
        return gzip.open(file)  # type: ignore[return-value]
    if name.endswith(".xz"):
        return lzma.open(file)
    if name.endswith(".zst"):
        pyarrow = _arrow()
        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"))
    return file


def packed_rows(file: IO[bytes], source: Table, name: str, limits: Limits) -> Iterator[Raw | RawEdit | Drop]:
    """Rows of a whole file that is packed or not; those before a break are kept."""
    try:
        yield from jsonl_rows(open_packed(file, name), source, name, limits, 0, None)
    except UNPACKING as error:
        yield _broken(error)


def _broken(error: Exception) -> Drop:
    """The drop that an error in a file is; one of the disk's or of the network's is raised again."""
    if isinstance(error, OSError) and (error.errno is not None or type(error) not in (OSError, gzip.BadGzipFile)):
        raise error
    return Drop("broken archive")


def jsonl_rows(
    file: IO[bytes], source: Table, name: str, limits: Limits, start: int, end: int | None
) -> Iterator[Raw | RawEdit | Drop]:
    """Rows whose lines begin in [start, end)."""
    longest = 8 * limits.max_file_bytes  # as much as escapes may add
    for place, row in json_lines(file, longest, start, end):
        yield row if isinstance(row, Drop) else take_row(row, source, f"{name}:{place}", limits)


def json_lines(
    file: IO[bytes], longest: int, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, dict[str, Any] | Drop]]:
    """Objects of the lines that begin in [start, end), with where; no more than `longest` bytes are held of one."""
    at = start
    if start:
        file.seek(start - 1)
        at = start - 1 + _skip_line(file, longest)
    while end is None or at < end:
        line = file.readline(longest)
        if not line:
            return
        place, at = at, at + len(line)
        if not line.endswith(b"\n") and len(line) == longest:
            at += _skip_line(file, longest)
            yield place, Drop("gigantic line")
        elif line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                yield place, Drop("no JSON")
                continue
            yield place, row if isinstance(row, dict) else Drop("no JSON object")


def _skip_line(file: IO[bytes], piece: int) -> int:
    """Reads to the end of the line; returns how many bytes."""
    skipped = 0
    while True:
        line = file.readline(piece)
        skipped += len(line)
        if not line or line.endswith(b"\n"):
            return skipped


def parquet_groups(file: IO[bytes], name: str) -> list[int]:
    """Bytes of every row group. Raises DataError for what is no Parquet file."""
    arrow = _arrow()
    try:
        metadata = arrow.parquet.ParquetFile(file).metadata
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is no whole Parquet file ({error}): take it out or fetch it again") from None
    return [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]


def parquet_rows(
    file: IO[bytes], source: Table, name: str, group: int, limits: Limits
) -> Iterator[Raw | RawEdit | Drop]:
    """Rows of one row group, read in small batches."""
    arrow = _arrow()
    try:
        table = arrow.parquet.ParquetFile(file)
        known = [one for one in source.columns.named() if one in table.schema_arrow.names]
        number = 0
        for batch in table.iter_batches(batch_size=256, row_groups=[group], columns=known):
            for row in batch.to_pylist():
                yield take_row(row, source, f"{name}:{group}:{number}", limits)
                number += 1
    except (arrow.ArrowException, OSError) as error:
        yield _broken(error)


def _arrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise DataError(NO_ARROW) from None
    return pyarrow


def take_row(row: Mapping[str, Any], source: Table, place: str, limits: Limits) -> Raw | RawEdit | Drop:
    """A row as a file or an edit; `place` is its id where the data set has none."""
    columns = source.columns
    told = row.get(columns.language) if columns.language else None
    language = columns.all_rows_are if told is None else languages.by_label(str(told)) or ""
    if not language and told is not None:
        return Drop("no language of the recipe")
    licence = row.get(columns.licence) if columns.licence else None
    if isinstance(licence, (list, tuple)):
        licence = licences.join(licences.by_name(str(one)) for one in licence) if licence else ""
    elif licence is not None:
        licence = licences.by_name(str(licence))
    identity = str(row.get(columns.id) or place) if columns.id else place
    path = str(row.get(columns.path) or place) if columns.path else place

    def raw(column: str, mark: str = "") -> Raw | None:
        text = row.get(column)
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else None
        return None if data is None else Raw(identity + mark, path, data, licence or source.licence, language)

    if not columns.before:
        whole = raw(columns.text)
        if whole is None:
            return Drop("row without text")
        return whole if len(whole.data) <= limits.max_file_bytes else Drop("file too large")
    before, after = raw(columns.before, "^"), raw(columns.after)
    if before is None or after is None:
        return Drop("row without text")
    if max(len(before.data), len(after.data)) > limits.max_file_bytes:
        return Drop("file too large")
    return RawEdit(before, after)


def _files(path: Path, endings: tuple[str, ...], number: int) -> list[Path]:
    paths = [path] if path.is_file() else sorted(path.rglob("*"))
    found = [one for one in paths if one.is_file() and (one.name.endswith(endings) or one == path)]
    if not found:
        raise DataError(f"{path} holds no {' or '.join(endings[:2])} file: correct `path` of source {number + 1}")
    return found
