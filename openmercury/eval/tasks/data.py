"""The files of the benchmarks: where they lie in a folder of evaluation data, and which version is meant.

A figure is worth comparing only on the same items, so every file is known by the sha256 of its uncompressed data. Who
means another version says so in a file `SHA256SUMS` of the folder (lines of hash and path, as sha256sum writes them).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openmercury.data.decontaminate import ENVIRONMENT, eval_folder, read_rows
from openmercury.errors import DataError

SUMS = "SHA256SUMS"

# Origins, commits and licences: docs/benchmarks.md.
SHA256 = {
    "bigcodebench_hard/bigcodebench_hard.json.xz": "5e7a87ff1085eafb13b2d570277bcb53dba68201717b4fc987a3f2b86a23869c",
    "cruxeval/cruxeval.jsonl.xz": "8368b81047dc5014e4caf5a2f97604eff7644e0ecd7415e3ceeb184bbc2e0c96",
    "editeval/edit_eval.jsonl.xz": "521effbaaae30e0ba539a28bc54479a501dfe73ebfaa9c636dff13c8d5df7754",
    "evalplus/HumanEvalPlus.jsonl.xz": "42526ec0e7d5f3ee0b06d6ced98f8c8bae3d76519151bfb3d36f79010645bd7f",
    "evalplus/MbppPlus.jsonl.xz": "b54e762755248ca411b523c917fa9f93c07b5ff2966bf60b3917b853926a3dad",
    "humaneval/HumanEval.jsonl.xz": "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
    "humaneval_infilling/HumanEval-RandomSpanInfillingLight.jsonl.xz": (
        "cbb2b36f90311a3a7d844b6361852bb33e3ab11ab3bca2b7e85bfb9bf78c5891"
    ),
    "humaneval_infilling/HumanEval-SingleLineInfilling.jsonl.xz": (
        "6fffc71ec2f1674372fcc177511f92312f1a27a9eacd8e43255c9f5ee9eca8c8"
    ),
    "mbpp/mbpp.jsonl.xz": "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
    "multipl_e/humaneval-cpp.jsonl.xz": "8717eabdf202137158c84506144b0fb1e73d5ecccbe5363ec79009ca014df629",
    "multipl_e/humaneval-java.jsonl.xz": "b21b015763452ec4f9f4e0e6425148ec331ace4da1232c8b4d441186185f6265",
    "multipl_e/humaneval-js.jsonl.xz": "634e2eee8d6e22de07c121b972207683dd96be76256bf44bdfc1a3386b739287",
    "multipl_e/humaneval-php.jsonl.xz": "bebd86875b1d8e65a8b7e692ed7bdf64612b44aa388825ea4dab40c7047c786b",
    "multipl_e/humaneval-sh.jsonl.xz": "2f702106e9ce4aa7385de568d9248d6c57c90382d782b162cb9e072fbd01ccf8",
    "multipl_e/humaneval-ts.jsonl.xz": "4b1af1050c9f226335d54a8c80553c39454a525cace3e67bdcfcc9092ba02637",
}


def read(folder: Path | None, name: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a file of `SHA256`, each with `fields`, from a folder (None: the environment's); raises DataError."""
    root = eval_folder(folder)
    path = root / name
    if not path.is_file():
        raise DataError(f"{path} is missing: put the file there, or point {ENVIRONMENT} to a folder that has it")
    rows = read_rows(path, sha256=_listed(root).get(name, SHA256[name]), remedy=f"list its hash in {root / SUMS}")
    missing = next((field for row in rows for field in fields if field not in row), None)
    if missing is not None:
        raise DataError(f"{path} has a row without {missing!r}: restore the file")
    return rows


def _listed(root: Path) -> dict[str, str]:
    """Hashes by path, as the folder itself lists them."""
    sums = root / SUMS
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    return {path.lstrip("*"): digest for digest, _, path in (line.replace("  ", " ").partition(" ") for line in lines)}
