"""A file before and after a change to examples of next edits and merges, in the form the server asks for them.

A change is a row of hunks. For a next edit some have been made, which the history tells, and one is to come:

    lines    ─ kept ─┬─ hunk ─┬─ kept ─┬─ hunk ──┬─ kept ─┬─ hunk ─┬─ kept ─
    state            │  made  │        │ to come │        │  open  │
    message  above ──────────── region: ▒▒▒▒▒▒▒▒▒▒▒▒ ── below ───────────────
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from openmercury.data.config import ExampleRecipe
from openmercury.data.document import Document
from openmercury.data.examples.common import chance, end_of_turn, finished
from openmercury.data.examples.merges import Hunk, merge_example
from openmercury.data.shards import Example
from openmercury.errors import ContextOverflowError, InputError
from openmercury.text import chat, edit
from openmercury.text.tokenizer import Tokenizer

TOGETHER = 2  # hunks with at most so many kept lines between them are one
AROUND = 8  # kept lines on each side of a hunk that belong to its region, at most
HISTORY = 5  # changes told, at most
CONTEXT = 3  # kept lines around a change in a diff
MOST_LINES = 3000  # of a change: comparing takes their square
UNTOLD, ACCEPTED = 0.1, 0.1  # shares of edits without a cursor, and of told changes that were suggestions


def make_edit_examples(before: Document, after: Document, recipe: ExampleRecipe, tokenizer: Tokenizer) -> list[Example]:
    """Examples of one changed file: next edits, perhaps one where nothing is to be changed, perhaps a merge.

    None of files that are equal, were rewritten, or whose text would be read otherwise than it was written (it speaks
    of the tags). Each is at most `max_tokens` long, as far as the server would cut its file.
    """
    drawn = chance(recipe, f"{before.id}\n{after.id}")
    old, new = (document.text.replace("\r\n", "\n") for document in (before, after))
    hunks = hunks_of(old.split("\n"), new.split("\n"))
    if not hunks:
        return []
    found = []
    order = list(range(len(hunks)))
    if drawn.random() < 0.5:
        drawn.shuffle(order)
    # The first hunk is not asked for: nothing that was done before tells of it.
    for place in sorted(drawn.sample(range(1, len(order)), min(recipe.edits, len(order) - 1))):
        found.append(_next(Draft(old, hunks, after.path, order[:place], order[place]), recipe, tokenizer, drawn))
    if drawn.random() < recipe.no_edit:
        found.append(_next(Draft(old, hunks, after.path, order, None), recipe, tokenizer, drawn))
    if drawn.random() < recipe.apply:
        found.append(merge_example(old.split("\n"), hunks, after.language, recipe, tokenizer, drawn))
    told = [one._replace(language=after.language, licence=after.licence) for one in found if one is not None]
    return finished(told, recipe, tokenizer)


def hunks_of(old: Sequence[str], new: Sequence[str]) -> list[Hunk]:
    """What changed, in order; changes close to each other are one. None where too much did."""
    shared = min(len(old), len(new))
    head = next((i for i in range(shared) if old[i] != new[i]), shared)
    tail = next((i for i in range(shared - head) if old[-1 - i] != new[-1 - i]), shared - head)
    left, right = old[head : len(old) - tail], new[head : len(new) - tail]
    if max(len(left), len(right)) > MOST_LINES:
        return []
    found: list[Hunk] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        hunk = Hunk(head + a, head + b, list(right[c:d]))
        if found and hunk.begin - found[-1].end <= TOGETHER:
            last = found.pop()
            hunk = Hunk(last.begin, hunk.end, [*last.lines, *old[last.end : hunk.begin], *hunk.lines])
        found.append(hunk)
    return found


# --- next edits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """A file, the hunks of its change, those made so far in the order they were, and the one to come."""

    text: str
    hunks: Sequence[Hunk]
    path: str
    made: Sequence[int]
    coming: int | None

    def lines(self, made: Iterable[int]) -> tuple[list[str], list[int]]:
        """The file with these hunks made, and the line that each hunk begins at in it."""
        old, done = self.text.split("\n"), set(made)
        found: list[str] = []
        begins, at = [], 0
        for number, hunk in enumerate(self.hunks):
            found += old[at : hunk.begin]
            begins.append(len(found))
            found += hunk.lines if number in done else old[hunk.begin : hunk.end]
            at = hunk.end
        return found + old[at:], begins

    def diff(self, step: int) -> str:
        """The change made at this step, as an editor tells it."""
        number = self.made[step]
        lines, begins = self.lines(self.made[:step])
        hunk, first = self.hunks[number], begins[number]
        last = first + hunk.end - hunk.begin
        low, high = max(0, first - CONTEXT), min(len(lines), last + CONTEXT)
        told = [
            f"--- a/{self.path}",
            f"+++ b/{self.path}",
            f"@@ -{low + 1},{high - low} +{low + 1},{high - low + len(hunk.lines) - (last - first)} @@",
            *(f" {line}" for line in lines[low:first]),
        ]
        matched = difflib.SequenceMatcher(None, lines[first:last], hunk.lines, autojunk=False)
        for tag, a, b, c, d in matched.get_opcodes():
            if tag == "equal":
                told += [f" {line}" for line in hunk.lines[c:d]]
            else:
                told += [*(f"-{line}" for line in lines[first + a : first + b]), *(f"+{x}" for x in hunk.lines[c:d])]
        return "\n".join([*told, *(f" {line}" for line in lines[last:high])])


def _next(draft: Draft, recipe: ExampleRecipe, tokenizer: Tokenizer, drawn: random.Random) -> Example | None:
    """The next edit of a draft; None where it has no room, or would not be read as it is meant."""
    asked, answer = _asked(draft, drawn)
    end = [*tokenizer.encode(edit.render_edit(answer)), end_of_turn(tokenizer)]
    try:
        if edit.parse_next_edit(edit.render_next_edit(asked)) != asked:
            return None
        room = recipe.max_tokens - len(end) - _frame(tokenizer)
        fitting = edit.fit(asked, lambda text: len(tokenizer.encode(text)), room)
    except (InputError, ContextOverflowError):
        return None
    if edit.read_edit(edit.render_edit(answer), fitting) != answer:
        return None
    prompt = chat.render(tokenizer, edit.edit_messages(fitting))
    if len(prompt) + len(end) > recipe.max_tokens:
        return None
    return Example([*prompt, *end], len(prompt), "edit")


def _frame(tokenizer: Tokenizer) -> int:
    """Tokens of a prompt around its message."""
    system, user = edit.edit_messages(edit.NextEdit("", "", "", ""))
    return len(chat.render(tokenizer, [system, {**user, "content": ""}]))


def _asked(draft: Draft, drawn: random.Random) -> tuple[edit.NextEdit, str | None]:
    """What is asked, and the new text of its region; None where nothing is to come."""
    lines, begins = draft.lines(draft.made)
    # Nothing to come is asked where the last change was, for that is where an editor asks.
    number = draft.coming if draft.coming is not None else draft.made[-1]
    hunk, first = draft.hunks[number], begins[number]
    size = hunk.end - hunk.begin if draft.coming is not None else len(hunk.lines)
    low, high = _region(draft, lines, begins, (first, first + size), drawn)
    region, inside = "\n".join(lines[low:high]), [*lines[low:first], *hunk.lines, *lines[first + size : high]]
    steps = range(max(0, len(draft.made) - drawn.randint(1, HISTORY)), len(draft.made))
    asked = edit.NextEdit(
        path=draft.path,
        above="".join(f"{line}\n" for line in lines[:low]),
        region=region,
        below="\n".join(lines[high:]),
        cursor=None if drawn.random() < UNTOLD else _cursor(lines, low, high, first, drawn),
        history=tuple(edit.Change(draft.diff(step), drawn.random() < ACCEPTED) for step in steps),
    )
    return asked, None if draft.coming is None else "\n".join(inside)


def _region(
    draft: Draft, lines: Sequence[str], begins: Sequence[int], changed: tuple[int, int], drawn: random.Random
) -> tuple[int, int]:
    """The lines to mark: the changed ones and some around them, up to the next hunk that is still open."""
    made = set(draft.made)
    low, high = max(0, changed[0] - drawn.randint(1, AROUND)), min(len(lines), changed[1] + drawn.randint(1, AROUND))
    for number, hunk in enumerate(draft.hunks):
        if number in made or number == draft.coming:
            continue
        if begins[number] < changed[0]:
            low = max(low, begins[number] + hunk.end - hunk.begin)
        else:
            high = min(high, begins[number])
    return low, high


def _cursor(lines: Sequence[str], low: int, high: int, first: int, drawn: random.Random) -> int | None:
    """An offset into the region: mostly at the end of the line where the change begins, else at that of any."""
    if low == high:
        return 0
    line = min(max(first, low), high - 1) if drawn.random() < 0.7 else drawn.randrange(low, high)
    return sum(len(each) + 1 for each in lines[low:line]) + len(lines[line])
