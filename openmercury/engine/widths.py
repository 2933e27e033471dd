"""How wide drafts and blocks should be on a machine whose forwards cost this much, row by row. No torch here.

`verified`, drafts of g tokens, a(k) the share of drafts whose first k tokens are all kept:

    "all"   a forward has (g + 1)² rows, and gives 1 + Σ a(k) tokens, k = 1 ‥ g
    "last"  one with drafts has 1 + g + g rows and gives as much; if not all are kept (1 − a(g)), the next has none:
            1 + g rows, 1 token
    n       one with drafts has 1 + g + n g rows; the next has none if the draft was cut off where no group stood

`diffusion`, blocks of K: K rows a forward, and as many tokens as were measured for that K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Groups = Literal["all", "last"] | int  # a number: behind so many likely lengths
MOST_GROUPS = 8

# Shipped model on HumanEval's prompts, 25 Nov 2026, bfloat16, 12 prompts: KEPT by drafts of 15 behind every length (174
# forwards), BLOCK_TOKENS at the default threshold (96 tokens at most).
KEPT = (0.91, 0.89, 0.83, 0.80, 0.78, 0.72, 0.66, 0.60, 0.57, 0.47, 0.43, 0.39, 0.36, 0.30, 0.28)
# Drafts at whose end none of 1, 2, … groups stands ÷ drafts that are cut off (12 prompts, drafts of 7 to 15,
# without a chain).
MISSED = (1.0, 0.55, 0.32, 0.22, 0.16, 0.11, 0.08, 0.06)
BLOCK_TOKENS = {4: 2.41, 6: 3.30, 8: 4.06, 10: 4.78, 12: 5.36, 16: 5.76}


def group_count(width: int, groups: Groups) -> int:
    """Noisy groups of a forward that holds drafts, at most."""
    if groups == "all":
        return width + 1
    return 1 if groups == "last" else min(groups, width + 1)


def positions(width: int, count: int) -> int:
    """Rows of a forward with `count` groups."""
    return 1 + width + width * count


class Drafts(NamedTuple):
    """Draft width and groups of `verified`, with the tokens a millisecond they promise."""

    width: int
    groups: Groups
    speed: float


def forward_ms(costs: Mapping[int, float], rows: int) -> float:
    """Milliseconds of a forward, on straight lines between the measured numbers of rows."""
    known = sorted(costs)
    assert known[0] <= rows <= known[-1], f"{rows} rows were not measured"
    high = next(each for each in known if each >= rows)
    low = max((each for each in known if each <= rows), default=high)
    part = (rows - low) / (high - low) if high > low else 0.0
    return costs[low] + part * (costs[high] - costs[low])


def draft_speed(costs: Mapping[int, float], width: int, groups: Groups) -> float:
    """Tokens a millisecond of `verified` with such drafts."""
    gain, count = 1 + sum(KEPT[:width]), group_count(width, groups)
    milliseconds = forward_ms(costs, positions(width, count))
    if groups == "all":
        return gain / milliseconds
    without = MISSED[count - 1] * (1 - KEPT[width - 1])  # forwards without drafts for each one with
    return (gain + without) / (milliseconds + without * forward_ms(costs, 1 + width))


def best_drafts(costs: Mapping[int, float]) -> Drafts:
    """The drafts that promise the most, among those whose rows were measured."""
    shapes: list[tuple[int, Groups]] = []
    for width in range(1, len(KEPT) + 1):
        shapes += [(width, "all"), (width, "last"), *((width, n) for n in range(2, min(width, MOST_GROUPS) + 1))]
    fitting = [each for each in shapes if positions(each[0], group_count(*each)) <= max(costs)]
    return max((Drafts(*shape, draft_speed(costs, *shape)) for shape in fitting), key=lambda each: each.speed)


def block_speed(costs: Mapping[int, float], width: int) -> float:
    """Tokens a millisecond of `diffusion` with such blocks."""
    return BLOCK_TOKENS[width] / forward_ms(costs, width)


def best_block(costs: Mapping[int, float]) -> int:
    """The block that promises the most."""
    return max(BLOCK_TOKENS, key=lambda width: block_speed(costs, width))
