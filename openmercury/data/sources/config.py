"""Where text comes from, as a recipe says it: one table `[[sources]]` each, told apart by its `kind`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from openmercury.config import Frozen


class Columns(Frozen):
    """Names of the columns of a table of files; "" where it has none.

    With `before` and `after` each row is an edit. `all_rows_are` is the language of rows that name neither a language
    nor a path.
    """

    text: str = "text"
    path: str = ""
    language: str = ""
    licence: str = ""
    id: str = ""
    before: str = ""
    after: str = ""
    all_rows_are: str = ""

    @model_validator(mode="after")
    def _pairs(self) -> Columns:
        if bool(self.before) != bool(self.after):
            raise ValueError("`before` and `after` go together: name both columns, or neither")
        return self

    def named(self) -> list[str]:
        """The columns that are read."""
        text = [self.before, self.after] if self.before else [self.text]
        return [name for name in (*text, self.path, self.language, self.licence, self.id) if name]


class FolderSource(Frozen):
    """All files below a folder. `licence` is the SPDX name of what carries none, as your own code may."""

    kind: Literal["folder"]
    path: Path
    licence: str = ""


class GitSource(Frozen):
    """A git repository: its files at HEAD, or the edits of its latest commits that change at most `max_files` files."""

    kind: Literal["git"]
    path: Path
    give: Literal["files", "edits"] = "files"
    licence: str = ""
    commits: Annotated[int, Field(ge=1)] = 5000
    max_files: Annotated[int, Field(ge=1)] = 20


class ArchiveSource(Frozen):
    """Wheels, sdists, npm tarballs, zip and tar archives: one, or all below a folder."""

    kind: Literal["archives"]
    path: Path


class ReleaseSource(Frozen):
    """Archives of several releases of the same packages: what changed between two of them is an edit."""

    kind: Literal["releases"]
    path: Path


class JsonlSource(Frozen):
    """JSON Lines files, plain or .gz, .xz, .zst: one, or all below a folder."""

    kind: Literal["jsonl"]
    path: Path
    columns: Columns = Columns()
    licence: str = ""


class ParquetSource(Frozen):
    """Parquet files: one, or all below a folder."""

    kind: Literal["parquet"]
    path: Path
    columns: Columns = Columns()
    licence: str = ""


class HubSource(Frozen):
    """Files of a data set on the Hugging Face Hub whose names fit the pattern `files`."""

    kind: Literal["hub"]
    repo: str
    revision: str = "main"
    files: str = "*.parquet"
    columns: Columns = Columns()
    licence: str = ""


Source = Annotated[
    FolderSource | GitSource | ArchiveSource | ReleaseSource | JsonlSource | ParquetSource | HubSource,
    Field(discriminator="kind"),
]
