"""Random JSON schemas of rising difficulty, for answers that must fulfil them."""

from __future__ import annotations

import random
from typing import Any

WORDS = ["name", "größe", "日本", "a b", 'quo"te', "emoji🙂", "back\\slash", "x", "Ω", "line\nbreak"]
PATTERNS = ["^[a-z]{2,5}$", "^[A-Z][0-9]{3}$", "^(red|green|blue)$", "^\\d{4}-\\d{2}$"]


def schema(rng: random.Random, level: int) -> dict[str, Any]:
    """Of `level` 0 one plain value; above it objects, arrays and alternatives, as many deep."""
    if level <= 0 or rng.random() < 0.15:
        return _plain(rng)
    kind = rng.choice(["object", "object", "array", "anyOf", "ref"])
    if kind == "array":
        least = rng.randint(0, 2)
        return {
            "type": "array",
            "items": schema(rng, level - 1),
            "minItems": least,
            "maxItems": least + rng.randint(0, 2),
        }
    if kind == "anyOf":
        return {"anyOf": [schema(rng, level - 1) for _ in range(rng.randint(1, 3))]}
    names = rng.sample(WORDS, rng.randint(1, 1 + min(level, 4)))
    made = {
        "type": "object",
        "properties": {name: schema(rng, level - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }
    if kind == "ref":
        made["$defs"] = {"part": _plain(rng)}
        made["properties"]["part"] = {"$ref": "#/$defs/part"}
        return {**made, "$id": f"https://example.org/{rng.randrange(2**40)}"}  # its references are its own
    return made


def _plain(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    return rng.choice(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 2000)},
            {"type": "number", "exclusiveMinimum": low, "maximum": low + 10},
            {"type": "integer", "multipleOf": rng.choice([2, 5, 7]), "minimum": 0, "maximum": 10_000},
            {"enum": rng.sample([*WORDS, 1, 2.5, None, True, {"a": [1]}], 3)},
            {"const": rng.choice(WORDS)},
            {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 9)},
            {"type": "string", "pattern": rng.choice(PATTERNS)},
            {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])},
            {"type": ["string", "null"], "maxLength": 5},
        ]
    )
