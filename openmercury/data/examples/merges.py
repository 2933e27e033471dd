"""Changed files to examples of `apply`: the file, an update snippet that tells the change, and the merged file.

A snippet is written as people and models write it, with comments in the place of kept code:

    # ... existing code ...
    kept lines, which tell where this belongs
    changed lines
    kept lines
    # ... existing code ...

The kept lines beside a comment stand in the file only once, so that just one merged file can be meant. Of a file too
long for an example a part is taken that could be a file of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from openmercury.data.config import ExampleRecipe
from openmercury.data.examples.common import end_of_turn
from openmercury.data.shards import Example
from openmercury.text import chat, edit
from openmercury.text.tokenizer import Tokenizer

KEPT = "... existing code ..."
CLEAR = (2, 8)  # kept lines beside a comment: at least, at most
WORTH = 3  # a comment takes the place of at least so many lines
SAMPLE, ROOM = 4000, 0.9  # characters that tell how many a token has, and how much of the room is used for that reason
_COMMENTS = {"python": "# {}", "bash": "# {}", "sql": "-- {}", "markdown": "<!-- {} -->"}


class Hunk(NamedTuple):
    """Lines begin … end − 1 of a file become `lines`."""

    begin: int
    end: int
    lines: list[str]


def applied(old: Sequence[str], hunks: Sequence[Hunk]) -> list[str]:
    """The lines with all hunks made."""
    found, at = list[str](), 0
    for hunk in hunks:
        found += [*old[at : hunk.begin], *hunk.lines]
        at = hunk.end
    return [*found, *old[at:]]


def merge_example(
    old: Sequence[str],
    hunks: Sequence[Hunk],
    language: str,
    recipe: ExampleRecipe,
    tokenizer: Tokenizer,
    drawn: random.Random,
) -> Example | None:
    """The merge of these hunks; None where no snippet tells them clearly, or it is too long."""
    frame = len(chat.render(tokenizer, edit.merge_messages(edit.Merge("", ""))))
    sample = "\n".join(old)[:SAMPLE]
    room = ROOM * (recipe.max_tokens - frame) * len(sample) / max(1, len(tokenizer.encode(sample)))
    old, hunks = part(old, hunks, room, drawn)
    update = update_snippet(old, hunks, language)
    if update is None:
        return None
    before, after = "\n".join(old), "\n".join(applied(old, hunks))
    merge = edit.Merge(before, update)
    ending = before[len(before.rstrip("\n")) :]
    if after.rstrip("\n") + ending != after or edit.parse_merge(edit.render_merge(merge)) != merge:
        return None  # a merged file ends as its original does
    marks, prompt = edit.merge_marks(merge), edit.merge_ids(tokenizer, merge)
    if len(edit.fence(after)) > len(marks):
        return None
    text = after.rstrip("\n")
    ids = [*prompt, *tokenizer.encode(f"{text}\n{marks}"), end_of_turn(tokenizer)]
    return Example(ids, len(prompt), "apply") if len(ids) <= recipe.max_tokens else None


def part(
    old: Sequence[str], hunks: Sequence[Hunk], room: float, drawn: random.Random
) -> tuple[Sequence[str], Sequence[Hunk]]:
    """The file, or lines of it around a hunk that is drawn, so that they fit with update and merge into `room`.

    The lines begin and end at the margin where they can, and hold no hunk in part.
    """
    sizes = [len(line) + 1 for line in old]
    told = sum(len(line) + 1 for hunk in hunks for line in hunk.lines)
    if 2 * (sum(sizes) + told) <= room:
        return old, hunks
    centre = hunks[drawn.randrange(len(hunks))]
    low, high = centre.begin, centre.end
    left = room / 2 - sum(sizes[low:high]) - 2 * sum(len(line) + 1 for line in centre.lines)
    while low > 0 or high < len(old):
        grows_up = high == len(old) or (low > 0 and centre.begin - low <= high - centre.end)
        left -= sizes[low - 1] if grows_up else sizes[high]
        if left < 0:
            break
        low, high = (low - 1, high) if grows_up else (low, high + 1)
    for hunk in hunks:  # those whose lines are not all within
        if hunk.begin < low <= hunk.end and hunk is not centre:
            low = hunk.end
        if hunk.begin <= high < hunk.end and hunk is not centre:
            high = hunk.begin
    low = next((i for i in range(low, centre.begin + 1) if _margin(old, i)), low)
    high = next((i for i in range(high, centre.end - 1, -1) if i == len(old) or _margin(old, i)), high)
    inside = [hunk for hunk in hunks if low <= hunk.begin and hunk.end <= high]
    return old[low:high], [Hunk(hunk.begin - low, hunk.end - low, hunk.lines) for hunk in inside]


def _margin(old: Sequence[str], number: int) -> bool:
    """Whether something begins at this line."""
    return number < len(old) and old[number][:1].strip() not in ("", ")", "]", "}")


# --- snippets --------------------------------------------------------------------------------------------------------


def update_snippet(old: Sequence[str], hunks: Sequence[Hunk], language: str) -> str | None:
    """The snippet; None where the file repeats itself too much to say clearly what changes, or nearly all does."""
    if any(KEPT in line for line in (*old, *(line for hunk in hunks for line in hunk.lines))):
        return None
    parts = _shown(old, hunks)
    if not parts:
        return None
    comment = _COMMENTS.get(language, "// {}").format(KEPT)
    told, at = list[str](), 0
    for begin, end in parts:
        if begin > at:
            told.append(_indent(old[begin]) + comment)
        within = [hunk for hunk in hunks if begin <= hunk.begin and hunk.end <= end]
        told += applied(old[begin:end], [Hunk(each.begin - begin, each.end - begin, each.lines) for each in within])
        at = end
    if at < len(old):
        told.append(_indent(old[at - 1] if at else "") + comment)
    return "\n".join(told) if parts != [(0, len(old))] else None


def _shown(old: Sequence[str], hunks: Sequence[Hunk]) -> list[tuple[int, int]] | None:
    """The ranges of old lines that the snippet holds, changed or kept."""
    parts: list[tuple[int, int]] = []
    for hunk in hunks:
        begin, end = _above(old, hunk.begin), _below(old, hunk.end)
        if begin is None or end is None:
            return None
        if parts and begin - parts[-1][1] < WORTH:
            last = parts.pop()
            begin, end = min(last[0], begin), max(last[1], end)
        parts.append((begin, end))
    if parts and parts[0][0] < WORTH:
        parts[0] = (0, parts[0][1])
    if parts and len(old) - parts[-1][1] < WORTH:
        parts[-1] = (parts[-1][0], len(old))
    return parts


def _above(old: Sequence[str], begin: int) -> int | None:
    """Where the kept lines above a hunk begin: they are the only ones like them, or reach the beginning."""
    for size in range(CLEAR[0], CLEAR[1] + 1):
        if begin - size <= 0:
            return 0
        if _once(old, begin - size, begin):
            return begin - size
    return None


def _below(old: Sequence[str], end: int) -> int | None:
    """Where those below it end."""
    for size in range(CLEAR[0], CLEAR[1] + 1):
        if end + size >= len(old):
            return len(old)
        if _once(old, end, end + size):
            return end + size
    return None


def _once(old: Sequence[str], begin: int, end: int) -> bool:
    """Whether these lines stand in the file only here, blanks aside."""
    wanted, size = [line.strip() for line in old[begin:end]], end - begin
    starts = [i for i in range(len(old) - size + 1) if old[i].strip() == wanted[0]]
    return any(wanted) and [i for i in starts if [line.strip() for line in old[i : i + size]] == wanted] == [begin]


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
