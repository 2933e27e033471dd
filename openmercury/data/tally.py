"""What became of the answers to prompts, by kind of prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Answers by (kind of prompt, what became of them), and completion tokens by kind."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Tally:
        """From `data`, as `plain` gives it."""
        each = {(kind, why): count for kind, table in data["answers"].items() for why, count in table.items()}
        return cls(Counter(each), Counter(data["tokens"]))

    def plain(self) -> dict[str, Any]:
        """For JSON: kind → outcome → count."""
        tables: dict[str, dict[str, int]] = {}
        for (kind, why), count in sorted(self.answers.items()):
            tables.setdefault(kind, {})[why] = count
        return {"answers": tables, "tokens": dict(sorted(self.tokens.items()))}

    def add(self, other: Tally) -> None:
        """Takes in another one."""
        self.answers += other.answers
        self.tokens += other.tokens

    def outcomes(self) -> Counter[str]:
        """Counts by what became of the answers, over all kinds."""
        found: Counter[str] = Counter()
        for (_, why), count in self.answers.items():
            found[why] += count
        return found
