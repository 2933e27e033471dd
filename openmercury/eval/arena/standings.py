"""What the votes say: strength, latency, and whether the place on the screen mattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from openmercury.eval.arena.rating import Duel, Rating, rate
from openmercury.eval.arena.votes import Vote


@dataclass(frozen=True)
class Standing:
    """One contestant. `tied` holds all kinds of ties, `same` those of equal texts; medians are over its answers.

    Strengths of different `group`s cannot be compared: no chain of votes joins them.
    """

    name: str
    group: int
    score: float
    low: float
    high: float
    won: int
    lost: int
    tied: int
    same: int
    seconds_p50: float
    tokens_per_second_p50: float


def standings(votes: Sequence[Vote]) -> list[Standing]:
    """The contestants, strongest first within each group."""
    groups = rate([Duel(vote.first, vote.second, vote.winner) for vote in votes])
    return [_standing(one, number, votes) for number, group in enumerate(groups, 1) for one in group]


def _standing(rating: Rating, group: int, votes: Sequence[Vote]) -> Standing:
    name = rating.name
    own = [vote for vote in votes if name in (vote.first, vote.second)]
    spent = [
        (vote.first_seconds, vote.first_tokens) if vote.first == name else (vote.second_seconds, vote.second_tokens)
        for vote in own
    ]
    won = sum(vote.winner == name for vote in own)
    tied = sum(vote.winner is None for vote in own)
    return Standing(
        name,
        group,
        rating.score,
        rating.low,
        rating.high,
        won,
        len(own) - won - tied,
        tied,
        sum(vote.outcome == "same" for vote in own),
        median(seconds for seconds, _ in spent),
        median(tokens / max(seconds, 1e-9) for seconds, tokens in spent),
    )


def first_preferred(votes: Sequence[Vote]) -> tuple[int, int]:
    """How often "1" won, of the votes that chose: far from a half, people choose places, not answers."""
    chosen = [vote for vote in votes if vote.winner is not None]
    return sum(vote.outcome == "first" for vote in chosen), len(chosen)


COLUMNS = (
    "contestant",
    "group",
    "score",
    "95 %",
    "won",
    "lost",
    "tied",
    "of these the same",
    "seconds p50",
    "tok/s p50",
)


def cells(row: Standing) -> list[str]:
    """What stands under `COLUMNS`."""
    return [
        row.name,
        str(row.group),
        f"{row.score:.0f}",
        f"{row.low:.0f} to {row.high:.0f}",
        str(row.won),
        str(row.lost),
        str(row.tied),
        str(row.same),
        f"{row.seconds_p50:.2f}",
        f"{row.tokens_per_second_p50:.1f}",
    ]
