"""Before a constrained forward: ask the grammars what may come, and take back guesses that may not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from openmercury.engine.constraint import ANY, Words
from openmercury.engine.modes import Shape
from openmercury.engine.request import Request
from openmercury.engine.runner import Runner
from openmercury.errors import InputError, RequestFailedError

Standing = tuple[list[int], int]  # what stands behind a text, and how many of these tokens are drafts


def guide(runner: Runner, shape: Shape, requests: Sequence[Request]) -> tuple[list[Request], list[Request]]:
    """Prepare the next forward of these; returns those that take part, and those that failed."""
    going = [request for request in requests if request.finish_reason is None]
    if not going:
        return [], []
    words = np.full((len(going), shape.width + 1, runner.words), ANY, dtype=np.int32)
    before = runner.standing(_slots(going), shape.width)
    after = [_ask(*each, shape, runner.mask_id) for each in zip(going, before, words, strict=True)]
    lines = [line for line, stands in enumerate(after) if stands is not None]
    if lines:
        changed = [line for line in lines if after[line] != before[line]]
        if changed:
            runner.stand(_slots([going[line] for line in changed]), [after[line] or ([], 0) for line in changed])
        runner.allow(np.ascontiguousarray(words[lines, : shape.most_columns]))
    return [going[line] for line in lines], [request for request in going if request.error is not None]


def _slots(requests: Sequence[Request]) -> list[int]:
    return [request.slot for request in requests if request.slot is not None]


def _ask(request: Request, before: Standing, words: Words, shape: Shape, mask_id: int) -> Standing | None:
    """Fill the row's masks; returns what may stand behind its text from now on, or None where it failed."""
    assert request.constraint is not None
    ids, drafts = before
    room = min(shape.width, request.limit - len(request.tokens))
    guessed = {"ar": [], "verified": ids[: min(drafts, room)], "diffusion": ids[: min(room, request.width)]}[shape.mode]
    most = {"ar": 0, "verified": room, "diffusion": len(guessed)}[shape.mode]
    try:
        kept = request.constraint.allowed(guessed, words[: most + 1])
    except Exception as error:  # whatever it is, it must not end requests beside it
        request.fail(cannot_follow(error))
        return None
    if shape.mode == "ar":
        return before
    if shape.mode == "verified":
        return [*kept, *ids[len(kept) :]], len(kept)
    return [*_block_behind(guessed, kept, mask_id), *ids[len(guessed) :]], drafts


def _block_behind(block: Sequence[int], kept: Sequence[int], mask_id: int) -> list[int]:
    """An active block of which these tokens stand. What is behind one that had to go was written on a false premise."""
    n = len(kept)
    same = all(old in (mask_id, new) for old, new in zip(block, kept, strict=False))
    rest = block[n:] if same and (n == len(block) or block[n] == mask_id) else [mask_id] * (len(block) - n)
    return [*kept, *rest]


def cannot_follow(error: Exception) -> InputError | RequestFailedError:
    """What a request ends with whose grammar raised this."""
    if isinstance(error, InputError):
        return error
    failure = RequestFailedError(f"the request's grammar raised {type(error).__name__} ({error}): report it as a bug")
    failure.__cause__ = error
    return failure
