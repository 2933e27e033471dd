"""Where text comes from. `plan` lists a recipe's units of work, `read` gives what lies in one of them."""

from __future__ import annotations

from collections.abc import Iterator

from openmercury.data.sources import archives, folder, git, hub, tables
from openmercury.data.sources.base import Drop, Limits, Plan, Raw, RawEdit, Unit
from openmercury.data.sources.config import Source

__all__ = ["Drop", "Limits", "Plan", "Raw", "RawEdit", "Unit", "plan", "read"]


def plan(number: int, source: Source, limits: Limits) -> Plan:
    """The units of the recipe's source at `number`. Raises DataError when it is not there."""
    match source.kind:
        case "folder":
            return folder.plan(number, source, limits)
        case "git":
            return git.plan(number, source, limits)
        case "archives":
            return archives.plan(number, source)
        case "releases":
            return archives.plan_releases(number, source)
        case "jsonl":
            return tables.plan_jsonl(number, source)
        case "parquet":
            return tables.plan_parquet(number, source)
        case "hub":
            return hub.plan(number, source)


def read(source: Source, unit: Unit, limits: Limits) -> Iterator[Raw | RawEdit | Drop]:
    """Files, edits and drops of one unit, always in the same order."""
    match source.kind:
        case "folder":
            return folder.read(source, unit, limits)
        case "git":
            return git.read(source, unit, limits)
        case "archives":
            return archives.read(unit, limits)
        case "releases":
            return archives.read_releases(unit, limits)
        case "jsonl":
            return tables.read_jsonl(source, unit, limits)
        case "parquet":
            return tables.read_parquet(source, unit, limits)
        case "hub":
            return hub.read(source, unit, limits)
