"""Where the prompts of the arena come from: a file, a benchmark, or a person's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openmercury.errors import DataError, EmptyPromptError, InputError
from openmercury.eval.tasks.base import Chat, Continue, Fill, Prompt, Task

KEYS = ("prefix", "prompt", "suffix")


def read(path: Path) -> list[Prompt]:
    """The prompts of a JSON Lines file: `prefix` and `suffix` (infilling) or `prompt` (completion) in each line; a
    `suffix` beside a `prompt` makes it the prefix, as in human-eval-infilling. Raises DataError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): give a file of JSON Lines in UTF-8") from None
    found = [_prompt(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path} holds no prompt: give one JSON object a line, with prefix and suffix, or prompt")
    return found


def _prompt(line: str, where: str) -> Prompt:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}): give one object a line") from None
    given = {key: row[key] for key in KEYS if row.get(key) is not None} if isinstance(row, dict) else {}
    if not given or {"prefix", "prompt"} <= given.keys() or not all(isinstance(text, str) for text in given.values()):
        raise DataError(f"{where} should hold texts: prefix and suffix (infilling), or prompt (completion)")
    if "prompt" in given:
        return own(given["prompt"], given.get("suffix"))
    return own(given.get("prefix", ""), given.get("suffix", ""))


def own(prefix: str, suffix: str | None) -> Prompt:
    """A prompt from the code around a gap, or before one's end where `suffix` is None.

    Raises EmptyPromptError, and InputError for half a surrogate pair, which JSON can hold and UTF-8 cannot.
    """
    if not prefix and not suffix:
        raise EmptyPromptError("the prompt is empty: give the code around the gap")
    if any("\ud800" <= character <= "\udfff" for character in prefix + (suffix or "")):
        raise InputError("the prompt holds half a surrogate pair, which is no text: leave it out")
    return Continue(prefix) if suffix is None else Fill(prefix, suffix)


def marked(text: str, marker: str) -> Prompt:
    """A prompt from pasted text: infilling where the marker stands in it (the first one), else completion."""
    prefix, found, suffix = text.partition(marker)
    return own(prefix, suffix if found else None)


def of_task(task: Task, data: Path | None) -> list[Prompt]:
    """The prompts of a benchmark, as infilling where it has that, else as completion, else as chat."""
    style = next(style for style in ("fill", "completion", "chat") if style in task.styles)
    return [problem.prompt for problem in task.problems(data, style)]


def around(prompt: Prompt) -> tuple[str, str]:
    """What stands before and behind the place of the answer."""
    if isinstance(prompt, Fill):
        return prompt.prefix, prompt.suffix
    return (prompt.user + "\n\n" if isinstance(prompt, Chat) else prompt.text), ""
