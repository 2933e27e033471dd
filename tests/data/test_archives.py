"""Archives from strangers: what is whole and wanted is read, everything else is a counted drop."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from openmercury.data.sources.archives import find, plan_releases, project_version, read_archive, read_releases
from openmercury.data.sources.base import Drop, Limits, Raw, RawEdit
from openmercury.data.sources.config import ReleaseSource
from openmercury.errors import DataError

LIMITS = Limits(frozenset({"python", "javascript", "bash"}), 10_000, 200_000, ("/_vendor/",))


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:].replace('tgz', 'gz')}") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        for entry in more:
            archive.addfile(entry)
    return path


def read(path: Path, limits: Limits = LIMITS) -> tuple[dict[str, Raw], Counter[str]]:
    items = list(read_archive(path, limits))
    raws = {item.path: item for item in items if isinstance(item, Raw)}
    return raws, Counter(item.reason for item in items if isinstance(item, Drop))


def test_a_wheel(tmp_path: Path) -> None:
    files = {
        "p-1.dist-info/METADATA": b"Name: p\nClassifier: License :: OSI Approved :: BSD License\n\n",
        "p/a.py": b"a = 1\n",
        "p/inner/LICENSE": b"Apache License Version 2.0",
        "p/inner/b.py": b"b = 1\n",
        "p/_vendor/c.py": b"c = 1\n",
        "p/big.py": b"#" * 10_001,
        "p/lib.so": b"\x7fELF",
        "p/run": b"#!/bin/bash\n",
        "../up.py": b"up = 1\n",
        "/root.py": b"root = 1\n",
        "C:\\windows.py": b"w = 1\n",
    }
    raws, drops = read(zipped(tmp_path / "p-1-py3-none-any.whl", files))
    assert {path: raw.licence for path, raw in raws.items()} == {
        "p/a.py": "BSD-3-Clause",
        "p/inner/b.py": "Apache-2.0",
        "p/run": "BSD-3-Clause",
    }
    assert raws["p/a.py"].id == "p-1-py3-none-any.whl:p/a.py"
    assert drops == {
        "no language of the recipe": 3,
        "path on the list to skip": 1,
        "file too large": 1,
        "path leaves the archive": 3,
    }


@pytest.mark.parametrize("ending", ["tar.gz", "tar.xz", "tar.bz2", "tgz"])
def test_tar_archives_lose_their_outer_folder(tmp_path: Path, ending: str) -> None:
    link = tarfile.TarInfo("p-1/link.py")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("p-1/dev.py")
    device.type = tarfile.CHRTYPE
    files = {"p-1/src/a.py": b"a = 1\n", "p-1/LICENSE": b"ISC", "p-1/PKG-INFO": b"License: MIT\n\n", "../x.py": b"x"}
    raws, drops = read(tarred(tmp_path / f"p-1.{ending}", files, link, device))
    assert {path: (raw.data, raw.licence) for path, raw in raws.items()} == {"src/a.py": (b"a = 1\n", "MIT")}
    assert drops["link"] == drops["no regular file"] == drops["path leaves the archive"] == 1


def test_an_npm_tarball(tmp_path: Path) -> None:
    files = {"package/index.js": b"x\n", "package/package.json": b'{"license": "MIT"}'}
    raws, _ = read(tarred(tmp_path / "p-1.0.0.tgz", files))
    assert raws["index.js"].licence == "MIT"


def test_bombs(tmp_path: Path) -> None:
    many = {f"p/{number}.py": b" " * 9_000 for number in range(30)}
    raws, drops = read(zipped(tmp_path / "many.zip", many))
    assert len(raws) < 30
    assert drops["archive unpacks to too much"] == 1
    raws, drops = read(tarred(tmp_path / "one.tar.gz", {"p/a.bin": bytes(1_000_000), "p/b.py": b"b = 1\n"}))
    assert not raws
    assert drops["archive unpacks to too much"] == 1
    # A zip whose directory tells a small size for a large member.
    path = zipped(tmp_path / "lie.zip", {"p/a.py": b" " * 50_000})
    path.write_bytes(path.read_bytes().replace((50_000).to_bytes(4, "little"), (5_000).to_bytes(4, "little")))
    raws, drops = read(path)
    assert sum(drops.values()) == 1
    assert all(len(raw.data) <= 5_000 for raw in raws.values())


@pytest.mark.parametrize("ending", ["zip", "tar.gz", "tar.xz"])
def test_broken_archives(tmp_path: Path, ending: str) -> None:
    files = {f"p/{number}.py": bytes([65 + number]) * 5_000 for number in range(9)}
    made = (zipped if ending == "zip" else tarred)(tmp_path / f"whole.{ending}", files).read_bytes()
    (tmp_path / f"cut.{ending}").write_bytes(made[: len(made) * 2 // 3])
    (tmp_path / f"none.{ending}").write_bytes(b"no archive at all")
    for name in ("cut", "none"):
        raws, drops = read(tmp_path / f"{name}.{ending}")
        assert drops == {"broken archive": 1}
        assert len(raws) < 9


def test_a_broken_member_does_not_stop_the_others(tmp_path: Path) -> None:
    path = zipped(tmp_path / "p.zip", {"a.py": b"first = 1\n" * 50, "b.py": b"second = 2\n"})
    data = bytearray(path.read_bytes())
    data[40] ^= 0xFF
    path.write_bytes(data)
    raws, drops = read(path)
    assert list(raws) == ["b.py"]
    assert drops == {"broken file in an archive": 1}


def test_releases_are_paired_by_version(tmp_path: Path) -> None:
    for version, text in (("1.9", b"one\n"), ("1.10", b"two\n"), ("1.2", b"zero\n")):
        tarred(tmp_path / f"p-{version}.tar.gz", {f"p-{version}/a.py": text, f"p-{version}/same.py": b"same\n"})
    zipped(tmp_path / "other-3.0-py3-none-any.whl", {"a.py": b"alone\n"})
    units = plan_releases(0, ReleaseSource(kind="releases", path=tmp_path)).units
    assert [unit.name for unit in units] == ["p-1.2.tar.gz → p-1.9.tar.gz", "p-1.9.tar.gz → p-1.10.tar.gz"]
    items = list(read_releases(units[1], LIMITS))
    edits = [item for item in items if isinstance(item, RawEdit)]
    assert [(edit.before.data, edit.after.data) for edit in edits] == [(b"one\n", b"two\n")]
    assert Drop("same in both releases") in items


def test_versions() -> None:
    names = ("p-1.0rc1.tar.gz", "p-1.0.tar.gz", "p-1.0.1-py3-none-any.whl", "p-1.10.tgz")
    assert {project_version(name)[0] for name in (*names, "P_-2.zip")} == {"p", "p-"}
    versions = [project_version(name)[1] for name in names]
    assert versions[1:] == sorted(versions[1:])


def test_no_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no archive"):
        find(tmp_path, 0)


@pytest.mark.parametrize("name", ["p-1-py3-none-any.whl", "p-1.tar.gz", "p-1.tar"])
def test_damage_is_a_drop_wherever_it_is(tmp_path: Path, name: str) -> None:
    files = {"p/é.py": b"x = 1\n" * 50, "p/b.py": b"y = 2\n" * 50, "package.json": b'{"license": "MIT"}'}
    path = (zipped if name.endswith("whl") else tarred)(tmp_path / name, files)
    whole, random = path.read_bytes(), Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(random.randint(1, 6)):
            damaged[random.randrange(len(whole))] = random.randrange(256)
        path.write_bytes(damaged[: random.choice((len(whole), random.randrange(len(whole))))])
        raws, _ = read(path)
        assert len(raws) <= len(files)


def test_names_of_gigabytes_are_not_read(tmp_path: Path) -> None:
    name = tarfile.TarInfo("x")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 3_000_000_000
    path = tarred(tmp_path / "p-1.tar.gz", {"p-1/a.py": b"a = 1\n"})
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:1024] + name.tobuf(tarfile.GNU_FORMAT)))
    raws, drops = read(path)
    assert set(raws) == set()  # the first reading looks for licences in all of it
    assert drops == {"archive unpacks to too much": 1}


def test_metadata_nested_too_deeply_say_nothing(tmp_path: Path) -> None:
    files = {"package.json": b"[" * 9_000, "a.py": b"a = 1\n"}
    raws, _ = read(zipped(tmp_path / "p.zip", files))
    assert raws["a.py"].licence == ""


def test_files_without_extension_count_as_unpacked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "p.zip", {f"run{number}": b" " * 9_000 for number in range(30)})
    assert read(path)[1]["archive unpacks to too much"] == 1
