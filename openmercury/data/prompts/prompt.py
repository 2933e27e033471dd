"""One prompt: what is asked, where it comes from, and its line in the file of prompts.

Every choice of words is a hash of the seed and the source's id, so a prompt does not depend on what else is in the set.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """Python around an answer that runs to its end if the answer's function `name` is right."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Prompt:
    """A prompt to be answered. `code`, `name` and `description` serve decontamination only; `source` names what it is
    made of, so that what is held out shares nothing with the rest.

    What is asked is `content` with an optional `system` message and `tools`, or a `message` to the endpoint of its
    kind, or what belongs between `prefix` and `suffix` (of which `middle` is the original).
    """

    id: str
    kind: str
    content: str = ""
    code: str = ""
    name: str = ""
    description: str = ""
    prefix: str = ""
    middle: str = ""
    suffix: str = ""
    message: str = ""
    system: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    check: Check | None = None
    source: str = ""

    @property
    def text(self) -> str:
        """All that is asked."""
        tools = json.dumps(self.tools) if self.tools else ""
        parts = (self.system, tools, self.content, self.message, self.prefix and f"{self.prefix}\0{self.suffix}")
        return "\n".join(filter(None, parts))

    def row(self) -> dict[str, Any]:
        """The line of the prompts file."""
        row: dict[str, Any] = {"id": self.id, "kind": self.kind}
        if self.kind == "fim":
            return row | {"prefix": self.prefix, "suffix": self.suffix}
        if self.message:
            return row | {"message": self.message}
        system = [{"role": "system", "content": self.system}] if self.system else []
        row["messages"] = [*system, {"role": "user", "content": self.content}]
        row |= {"tools": list(self.tools)} if self.tools else {}
        return row | ({"check": asdict(self.check)} if self.check else {})


def rank(*parts: object) -> int:
    """A 60-bit hash of the parts: the source of every choice and of the order of the file."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 4


def pick(options: Sequence[str], *key: object) -> str:
    """One of the options, by hash."""
    return options[rank(*key) % len(options)]


def fill(template: str, values: dict[str, str]) -> str:
    """Replaces `{key}` for the given keys only, in one pass: braces in the values stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match.group(1), match.group(0)), template)
