"""Who asks: API keys, of which a file holds nothing but hashes.

A key is 256 random bits, so one SHA-256 is enough to keep it: there is nothing to guess from a dictionary. The file is
JSON, `{"keys": [{"name", "sha256", "requests_per_minute"?, "tokens_per_minute"?}]}`, read when the server starts.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from openmercury.config import Frozen, explain
from openmercury.errors import ConfigError
from openmercury.server.errors import ApiError
from openmercury.server.limits import Client
from openmercury.server.settings import Positive, ServerSettings

PREFIX = "om-"
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Key(Frozen):
    """One line of the file; limits that it does not name are the server's."""

    name: Annotated[str, Field(min_length=1)]
    sha256: Digest
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None


class KeyFile(Frozen):
    """The file."""

    keys: tuple[Key, ...] = ()


def read_keys(path: Path) -> KeyFile:
    """Raises ConfigError for a file that is missing or broken."""
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be read ({error.strerror}): make it with `openmercury serve --keys {path} "
            "--add-key NAME`"
        ) from None
    except ValidationError as error:
        raise ConfigError(f"the key file {path} is broken: {explain(error, KeyFile)}") from None


def add_key(path: Path, name: str) -> str:
    """Make a key, write its hash to the file, which only its owner may read, and return it: nobody can show it again.

    Raises ConfigError where the name is taken or the file is broken.
    """
    held = read_keys(path).keys if path.exists() else ()
    if any(key.name == name for key in held):
        raise ConfigError(f"{path} has a key named {name} already: take another name, or remove that line first")
    made = PREFIX + secrets.token_urlsafe(32)
    whole = KeyFile(keys=(*held, Key(name=name, sha256=_digest(made))))
    written = path.with_name(path.name + ".new")
    with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(json.dumps(whole.model_dump(exclude_none=True), indent=2) + "\n")
    written.replace(path)
    return made


class Door:
    """Lets clients in: by key, or, without a key file, whoever reaches this machine's own address."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises ConfigError for a public address without keys, and as `read_keys`."""
        default = settings.requests_per_minute, settings.tokens_per_minute
        self._anyone: Client | None = None
        self._clients: list[tuple[str, Client]] = []
        if settings.keys is None:
            if not loopback(settings.host):
                raise ConfigError(
                    f"{settings.host} can be reached from other machines and there are no API keys: "
                    "give --keys FILE, or bind 127.0.0.1"
                )
            self._anyone = Client("local", *default)
            return
        for key in read_keys(settings.keys).keys:
            limits = key.requests_per_minute or default[0], key.tokens_per_minute or default[1]
            self._clients.append((key.sha256, Client(key.name, *limits)))

    def admit(self, authorization: str, host: str) -> Client:
        """The client behind a request's headers; raises ApiError.

        Every key is compared, each in constant time. Without keys, a Host that is not this machine means that a web
        page has pointed its own name here (DNS rebinding).
        """
        if self._anyone is not None:
            if not loopback(_hostname(host)):
                raise ApiError(403, "this server answers to its own machine only: use 127.0.0.1 as its host name")
            return self._anyone
        scheme, _, given = authorization.partition(" ")
        digest = _digest(given.strip()) if scheme.lower() == "bearer" else ""
        found = [client for held, client in self._clients if hmac.compare_digest(held, digest)]
        if not found:
            told = (
                "Incorrect API key provided" if authorization else "No API key provided: send Authorization: Bearer KEY"
            )
            headers = {"www-authenticate": "Bearer"}
            raise ApiError(401, told, "authentication_error", "invalid_api_key", headers=headers)
        return found[0]


def loopback(host: str) -> bool:
    """Is this the address of this machine alone?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hostname(host: str) -> str:
    """The host of a Host header, without its port: "[::1]:8000" is ::1."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
