"""Files of a data set on the Hugging Face Hub, streamed: Parquet and JSON Lines are read without a copy on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from openmercury.data.sources.base import Drop, Limits, Plan, Raw, RawEdit, Unit
from openmercury.data.sources.config import HubSource
from openmercury.data.sources.tables import JSONL, packed_rows, parquet_groups, parquet_rows
from openmercury.errors import DataError

NO_HUB = "a Hub data set needs huggingface_hub: pip install 'openmercury[hub]'"


def plan(number: int, source: HubSource) -> Plan:
    """One unit a row group or file; the revision is resolved to a commit, so that a resumed run reads the same."""
    hub, broken = _hub()
    made = Plan()
    try:
        facts = hub.HfApi().dataset_info(source.repo, revision=source.revision, files_metadata=True)
        for sibling in sorted(facts.siblings or (), key=lambda one: one.rfilename):
            name, size = sibling.rfilename, sibling.size or 0
            if not fnmatch(name, source.files):
                continue
            items = [(facts.sha, name, "")]
            if name.endswith(".parquet"):
                with _open(source, facts.sha, name) as file:
                    items = [(facts.sha, name, str(group)) for group in range(len(parquet_groups(file, name)))]
            for item in items:
                made.units.append(Unit(number, f"{source.repo}/{name}[{item[2]}]", (item,), size // len(items)))
    except broken as error:
        raise DataError(
            f"the Hub does not give {source.repo} ({_first_line(error)}): check its name and access"
        ) from None
    if not made.units:
        raise DataError(f"{source.repo} has no file that fits {source.files!r}: correct `files` of source {number + 1}")
    return made


def read(source: HubSource, unit: Unit, limits: Limits) -> Iterator[Raw | RawEdit | Drop]:
    """The rows of one unit."""
    revision, name, group = unit.items[0]
    _, broken = _hub()
    try:
        with _open(source, revision, name) as file:
            if name.endswith(".parquet"):
                yield from parquet_rows(file, source, name, int(group), limits)
            elif name.endswith(JSONL):
                yield from packed_rows(file, source, name, limits)
            else:
                yield Drop("neither Parquet nor JSON Lines")
    except broken as error:
        raise DataError(
            f"the Hub broke off {source.repo} ({_first_line(error)}): start again, and it goes on"
        ) from None


def _open(source: HubSource, revision: str, name: str) -> Any:
    hub, _ = _hub()
    return hub.HfFileSystem().open(f"datasets/{source.repo}/{name}", "rb", revision=revision)


def _hub() -> tuple[Any, tuple[type[Exception], ...]]:
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ModuleNotFoundError:
        raise DataError(NO_HUB) from None
    import httpx

    return huggingface_hub, (HfHubHTTPError, HFValidationError, httpx.HTTPError, ConnectionError)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
