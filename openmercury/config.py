"""Settings: a TOML recipe, then `key=value` overrides, then a frozen pydantic tree that refuses what it does not know.

Each component owns its class, derived from `Frozen`, in its own `config.py`; this file only knows how to fill one and
how to say in one line what is wrong with what the user wrote. No torch here, nor in any module that describes settings.
"""

from __future__ import annotations

import datetime
import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from openmercury.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)

SHOWN_ERRORS = 3
SHOWN_CHARACTERS = 60
KIND = "kind"  # says which keys its table has


class Frozen(BaseModel):
    """Base of every settings class: immutable, hashable where its fields are, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def load_config(cls: type[ConfigT], path: Path | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Fill `cls` from the TOML file at `path` (None: from defaults alone), then apply `a.b=value` overrides in order.

    A value is read as TOML (`lr=1e-4`, `sizes=[8, 16]`), and as a plain string where it is no TOML (`out=runs/nano`).
    Another `kind` than the file's begins its table anew: what stood there belongs to the other. Raises ConfigError, one
    line long, for a missing or unreadable file, an unknown key or a value of the wrong type.
    """
    tree = {} if path is None else read_toml(path)
    for override in overrides:
        _apply(tree, override)
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        source = "settings" if path is None else path
        raise ConfigError(f"{source}: {explain(error, cls)}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of one TOML file; raises ConfigError when it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: give the path of a TOML recipe") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give the path of a TOML recipe") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text: give the path of a TOML recipe") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {_one_line(str(error))}") from None


def explain(error: ValidationError, cls: type[BaseModel] | None = None) -> str:
    """What is wrong, in one line that uses the user's own key names.

    With the class that was being filled, names are cleaned of pydantic's union labels and unknown keys come with the
    nearest known one; without it, they are shown as pydantic gives them.
    """
    # A missing key is often one that was misspelt, so the misspelling is told first.
    found = sorted(error.errors(include_url=False), key=lambda details: details["type"] == "missing")
    told = [_explain_one(details, cls) for details in found[:SHOWN_ERRORS]]
    if len(found) > SHOWN_ERRORS:
        told.append(f"and {len(found) - SHOWN_ERRORS} more")
    return "; ".join(told)


# --- overrides -------------------------------------------------------------------------------------------------------


def parse_value(text: str) -> Any:
    """The TOML value that `text` spells, or `text` itself; raises ValueError for a broken list, table or quotation."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.lstrip().startswith(("[", "{", '"', "'")):
            raise ValueError(_one_line(str(error))) from None
        return text
    # A second line would be a second key, and dates are left to the field's own type: a run may be named 2026-11-23.
    plain = len(parsed) == 1 and not isinstance(parsed["value"], (datetime.date, datetime.time))
    return parsed["value"] if plain else text


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in the tree, in place; tables that are not there yet are made."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r} cannot be read: write key=value, as in optim.lr=1e-4")
    try:
        value = parse_value(text)
    except ValueError as error:
        raise ConfigError(f"override {override!r} has no valid TOML value ({error}): quote strings in lists") from None
    here: Any = tree
    for depth, part in enumerate(parts):
        place = _place(here, part)
        if place is None:
            raise ConfigError(f"override {override!r}: {'.'.join(parts[:depth])} has no entry {part!r} to set")
        if depth == len(parts) - 1:
            if part == KIND and here.get(part, value) != value:
                here.clear()
            here[place] = value
        else:
            here = here.setdefault(place, {}) if isinstance(here, dict) else here[place]


def _place(here: Any, part: str) -> str | int | None:
    """Where `part` lies in a table (any key) or a list (an index that exists); None in anything else."""
    if isinstance(here, dict):
        return part
    if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
        return int(part)
    return None


# --- errors in one line ----------------------------------------------------------------------------------------------


def _explain_one(details: ErrorDetails, cls: type[BaseModel] | None) -> str:
    loc, context = details["loc"], details.get("ctx", {})
    names, siblings = ([str(part) for part in loc], []) if cls is None else _walk(cls, loc)
    where = ".".join(names)
    message = _one_line(details["msg"])
    match details["type"]:
        case "missing":
            return f"{where} is missing"
        case "extra_forbidden":
            return _unknown(names, siblings, cls)
        case "union_tag_not_found":
            return f"{where}.{_bare(context['discriminator'])} is missing"
        case "union_tag_invalid":
            tag = f"{where}.{_bare(context['discriminator'])}"
            return f"{tag} should be one of {context['expected_tags']}, got {context['tag']!r}"
        case "value_error" | "assertion_error":
            message = _one_line(str(context["error"]))
            return f"{where}: {message}" if where else message
    message = f"{message.removeprefix('Input ')}, got {_shown(details['input'])}"
    return f"{where} {message}" if where else message


def _unknown(names: list[str], siblings: list[str], cls: type[BaseModel] | None) -> str:
    """Unknown key, with the key most likely meant: the same name in another table, else the nearest one beside it."""
    where, prefix = ".".join(names), names[:-1]
    elsewhere = [] if cls is None else [key for key in _keys(cls) if key.split(".")[-1] == names[-1] and key != where]
    beside = [".".join([*prefix, key]) for key in difflib.get_close_matches(names[-1], siblings, n=1)]
    nearest = [*elsewhere, *beside]
    if nearest:
        return f"unknown key {where}: did you mean {nearest[0]}?"
    known = ", ".join(".".join([*prefix, key]) for key in siblings)
    return f"unknown key {where}" + (f": known are {known}" if known else "")


def _walk(cls: type[BaseModel], loc: Sequence[str | int]) -> tuple[list[str], list[str]]:
    """Follow pydantic's `loc` through the annotations: the user's key names, and the known keys beside the last one.

    `loc` also holds labels the user never wrote: the tag of a discriminated union, the type name of a plain one.
    """
    here: list[Any] = [cls]
    names: list[str] = []
    siblings: list[str] = []
    for part in loc:
        labelled = [kind for kind in here if len(here) > 1 and part in _labels(kind)]
        if labelled:
            here = labelled
            continue
        inner = [member for kind in here for member in _inside(kind, part)]
        if not inner and len(here) > 1 and not any(map(_is_model, here)):
            continue  # the label of a constrained or generic scalar, such as "constrained-int"
        siblings = [field for kind in here if _is_model(kind) for field in kind.model_fields]
        names.append(str(part))
        here = inner
    return names, siblings


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _members(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, None left out: `Annotated[A | B, ...] | None` gives A, B."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for argument in get_args(annotation) for member in _members(argument)]
    return [] if annotation is NoneType else [annotation]


def _inside(kind: Any, part: str | int) -> list[Any]:
    """The alternatives for what lies at key or index `part` of a value of type `kind`."""
    if _is_model(kind):
        field = kind.model_fields.get(part)
        return [] if field is None else _members(field.annotation)
    arguments = [argument for argument in get_args(kind) if argument is not Ellipsis]
    if get_origin(kind) is dict:
        return _members(arguments[1])
    if get_origin(kind) in (list, tuple) and isinstance(part, int):
        return [member for argument in arguments for member in _members(argument)]
    return []


def _labels(kind: Any) -> set[str]:
    """What pydantic may call `kind` in a `loc`: its type name, or the values of its Literal fields (its tags)."""
    labels = {getattr(kind, "__name__", str(kind))}
    if _is_model(kind):
        for field in kind.model_fields.values():
            if get_origin(field.annotation) is Literal:
                labels.update(map(str, get_args(field.annotation)))
    return labels


def _keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a settings tree; the classes must not contain themselves."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        for member in _members(field.annotation):
            if _is_model(member):
                yield from _keys(member, f"{prefix}{name}.")


def _bare(discriminator: str) -> str:
    return discriminator.strip("'()")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shown(value: object) -> str:
    text = _one_line(repr(value))
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
