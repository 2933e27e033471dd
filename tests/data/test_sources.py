"""Folders, git repositories and tables as units of work."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from pydantic import TypeAdapter

from openmercury.data import sources
from openmercury.data.sources import Drop, Limits, Raw, RawEdit
from openmercury.data.sources.config import Source
from openmercury.errors import DataError

LIMITS = Limits(frozenset({"python", "javascript"}), 10_000, 1_000_000, ("/_vendor/",))


def items(given: dict[str, Any], limits: Limits = LIMITS) -> list[Raw | RawEdit | Drop]:
    source: Source = TypeAdapter(Source).validate_python(given)
    return [item for unit in sources.plan(0, source, limits).units for item in sources.read(source, unit, limits)]


def texts(found: list[Raw | RawEdit | Drop]) -> dict[str, bytes]:
    return {item.path: item.data for item in found if isinstance(item, Raw)}


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_installed_packages(tmp_path: Path) -> None:
    for name, text in {
        "a/x.py": "x = 1\n",
        "b/y.py": "y = 1\n",
        "c/z.py": "z = 1\n",
        "a-1.dist-info/METADATA": "License-Expression: MIT\n\n",
        "a-1.dist-info/RECORD": "a/x.py,sha256=1,6\na-1.dist-info/METADATA,,\n../../bin/a,,\n",
        "b-1.dist-info/METADATA": "License: Proprietary\n\n",
        "b-1.dist-info/RECORD": "b/y.py,,\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = items({"kind": "folder", "path": tmp_path, "licence": "own"})
    assert {item.path: item.licence for item in found if isinstance(item, Raw)} == {
        "a/x.py": "MIT",
        "b/y.py": "unknown",
        "c/z.py": "own",
    }


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="correct `path` of source 1"):
        items({"kind": "folder", "path": tmp_path / "none"})


# --- git -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        told = ("-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main")
        subprocess.run(["git", "-C", str(tmp_path), *told, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "LICENSE").write_text("Apache License Version 2.0")
    (tmp_path / "ä file.py").write_text("one = 1\n")
    (tmp_path / "notes.txt").write_text("notes\n")
    (tmp_path / "link.py").symlink_to("notes.txt")
    git("add", ".")
    git("commit", "-m", "First")
    (tmp_path / "ä file.py").write_text("one = 2\n")
    (tmp_path / "new.py").write_text("new = 1\n")
    git("add", ".")
    git("commit", "-m", "Count from two\n\nIt is better.\n\nSigned-off-by: A <a@example.com>")
    for name in "abc":
        (tmp_path / f"{name}.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "Three files")
    for name in "abc":
        (tmp_path / f"{name}.py").write_text("2\n")
    git("commit", "-am", "Many at once")
    return tmp_path


def test_files_at_head(repository: Path) -> None:
    found = items({"kind": "git", "path": repository})
    assert texts(found)["ä file.py"] == b"one = 2\n"
    assert set(texts(found)) == {"ä file.py", "new.py", "a.py", "b.py", "c.py"}
    assert {item.licence for item in found if isinstance(item, Raw)} == {"Apache-2.0"}


def test_history_as_edits(repository: Path) -> None:
    found = items({"kind": "git", "path": repository, "give": "edits", "max_files": 2})
    edits = [item for item in found if isinstance(item, RawEdit)]
    assert [(edit.before.data, edit.after.data) for edit in edits] == [(b"one = 1\n", b"one = 2\n")]
    assert edits[0].before.licence == "Apache-2.0"
    assert edits[0].before.id != edits[0].after.id
    assert Drop("commit over too many files") in found


@pytest.mark.parametrize("give", ["files", "edits"])
def test_what_a_repository_configures_is_not_run(repository: Path, tmp_path: Path, give: str) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "program").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "program").chmod(0o755)

    def git(*words: str, **more: Any) -> str:
        return subprocess.run(
            ["git", "-C", repository, *words], check=True, capture_output=True, text=True, **more
        ).stdout

    signed = git("cat-file", "commit", "HEAD").replace("\n\n", "\ngpgsig -----BEGIN PGP SIGNATURE-----\n .\n\n", 1)
    git("update-ref", "HEAD", git("hash-object", "-t", "commit", "-w", "--stdin", input=signed).strip())
    for key, value in {
        "log.showSignature": "true", "gpg.program": str(tmp_path / "program"),
        "core.fsmonitor": str(tmp_path / "program"),
        "diff.external": str(tmp_path / "program"), "core.pager": str(tmp_path / "program"),
        "core.repositoryFormatVersion": "1", "extensions.partialClone": "origin", "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::{tmp_path / 'program'}", "protocol.ext.allow": "always",
    }.items():  # fmt: skip
        git("config", key, value)
    missing = git("rev-parse", "HEAD:a.py").strip()
    (repository / ".git" / "objects" / missing[:2] / missing[2:]).unlink()
    found = items({"kind": "git", "path": repository, "give": give, "max_files": 9})
    assert any(isinstance(item, Raw | RawEdit) for item in found)
    assert give == "files" or Drop("not in this clone") in found
    assert not ran.exists()


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="git cannot read"):
        items({"kind": "git", "path": tmp_path / "none"})


# --- tables ----------------------------------------------------------------------------------------------------------

ROWS = [
    {"content": f"row = {number}\n", "path": f"f{number}.py", "lang": "Python", "license": ["MIT"]}
    for number in range(50)
]
COLUMNS = {"text": "content", "path": "path", "language": "lang", "licence": "license"}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zstd(data: bytes) -> bytes:
    packed: bytes = pytest.importorskip("pyarrow").compress(data, codec="zstd", asbytes=True)
    return packed


@pytest.mark.parametrize(
    ("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_json_lines(tmp_path: Path, ending: str, pack: Any) -> None:
    path = tmp_path / f"rows.jsonl{ending}"
    path.write_bytes(pack(lines(ROWS)))
    found = items({"kind": "jsonl", "path": path, "columns": COLUMNS})
    assert texts(found) == {row["path"]: row["content"].encode() for row in ROWS}
    assert {(item.language, item.licence) for item in found if isinstance(item, Raw)} == {("python", "MIT")}


@pytest.mark.parametrize("step", [1, 7, 100, 4_000])
def test_ranges_of_a_file_give_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr("openmercury.data.sources.tables.RANGE_BYTES", step)
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    found = items({"kind": "jsonl", "path": tmp_path / "rows.jsonl", "columns": COLUMNS})
    assert [item.path for item in found if isinstance(item, Raw)] == [row["path"] for row in ROWS]


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"{broken\n"
        + b"[" * 20_000
        + b"\n[1]\n"
        + lines([{"content": None}, {"content": "y" * 100_000}, ROWS[0]])
        + b'{"lang": "Basic"}'
    )
    found = items({"kind": "jsonl", "path": path, "columns": COLUMNS})
    assert [item.reason for item in found if isinstance(item, Drop)] == [
        "no JSON",
        "no JSON",
        "no JSON object",
        "row without text",
        "gigantic line",
        "no language of the recipe",
    ]
    assert len(texts(found)) == 1


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd)])
def test_packed_rows_that_break_off(tmp_path: Path, ending: str, pack: Any) -> None:
    path, whole = tmp_path / f"rows.jsonl{ending}", pack(lines(ROWS))
    for broken in (whole[:100], whole[:-5], b"nothing packed", whole[:40] + b"\xff\xff\xff\xff" * 3 + whole[52:]):
        path.write_bytes(broken)
        found = items({"kind": "jsonl", "path": path, "columns": COLUMNS})
        assert isinstance(found[-1], Drop)


def test_rows_of_edits_with_one_language(tmp_path: Path) -> None:
    rows = [{"old": "a = 1\n", "new": "a = 2\n"}]
    (tmp_path / "rows.jsonl").write_bytes(lines(rows))
    columns = {"before": "old", "after": "new", "all_rows_are": "python"}
    found = items({"kind": "jsonl", "path": tmp_path, "columns": columns, "licence": "MIT"})
    edit = found[0]
    assert isinstance(edit, RawEdit)
    assert (edit.before.data, edit.after.data) == (b"a = 1\n", b"a = 2\n")
    assert edit.after.licence == "MIT"
    assert edit.after.language == "python"


def test_parquet_by_row_groups(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=20)
    source = {"kind": "parquet", "path": tmp_path / "rows.parquet", "columns": COLUMNS}
    assert texts(items(source)) == {row["path"]: row["content"].encode() for row in ROWS}
    small = Limits(LIMITS.languages, 8, LIMITS.max_archive_bytes)
    assert items(source, small).count(Drop("file too large")) == 40  # two digits
    (tmp_path / "rows.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="no whole Parquet file"):
        items(source)


class Hub:
    """Stands in for huggingface_hub: one data set whose files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def HfApi(self) -> Hub:
        return self

    def HfFileSystem(self) -> Hub:
        return self

    def dataset_info(self, repo: str, *, revision: str, files_metadata: bool) -> SimpleNamespace:
        assert (repo, revision, files_metadata) == ("owner/name", "main", True)
        found = [SimpleNamespace(rfilename=path.name, size=path.stat().st_size) for path in self.folder.iterdir()]
        return SimpleNamespace(sha="c0ffee", siblings=found)

    def open(self, path: str, mode: str, *, revision: str) -> IO[bytes]:
        assert (mode, revision) == ("rb", "c0ffee")
        return (self.folder / path.removeprefix("datasets/owner/name/")).open("rb")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_a_hub_data_set_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=20)
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    monkeypatch.setattr("openmercury.data.sources.hub._hub", lambda: (Hub(tmp_path), (ConnectionError,)))
    source = {"kind": "hub", "repo": "owner/name", "files": f"*.{ending}", "columns": COLUMNS}
    assert texts(items(source)) == {row["path"]: row["content"].encode() for row in ROWS}
    with pytest.raises(DataError, match="has no file that fits"):
        items({**source, "files": "*.csv"})


class Unplugged(io.BytesIO):
    """A file whose network breaks off."""

    def read(self, size: int | None = -1) -> bytes:
        raise ConnectionError("unplugged")

    readline = read
    read1 = read


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_a_network_that_breaks_off_is_no_drop(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("openmercury.data.sources.hub._hub", lambda: (None, (ConnectionError,)))
    monkeypatch.setattr("openmercury.data.sources.hub._open", lambda *_: Unplugged(b"." * 100))
    source: Source = TypeAdapter(Source).validate_python({"kind": "hub", "repo": "owner/name"})
    unit = sources.Unit(0, "u", (("c0ffee", f"rows.{ending}", "0"),), 1)
    with pytest.raises(DataError, match=r"the Hub broke off owner/name \(unplugged\)"):
        list(sources.read(source, unit, LIMITS))


@pytest.mark.parametrize(
    ("source", "extra", "module"),
    [
        ({"kind": "parquet", "path": "a.parquet"}, "data", "pyarrow"),
        ({"kind": "hub", "repo": "owner/name"}, "hub", "huggingface_hub"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], extra: str, module: str
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"pip install 'openmercury\[{extra}\]'"):
        items(source)


def test_a_name_that_no_data_set_has() -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(DataError, match="check its name"):
        items({"kind": "hub", "repo": "a name!!"})
