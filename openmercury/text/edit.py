"""Next edits and merges: Mercury's tagged messages, the prompts made of them, and what an answer says.

    next edit   <|recently_viewed_code_snippets|> … <|current_file_content|> … <|code_to_edit|> … <|edit_diff_history|>
    apply       <|original_code|> … <|update_snippet|>

Messages are read as leniently as clients write them and rendered in one form, so that reading what was rendered gives
the same again: requests and training rows are the same text. A tag takes a line; the line breaks next to it belong to
the tag. `newline` is how the client ends lines; all other text has "\\n".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from openmercury.errors import ContextOverflowError, InputError
from openmercury.text import chat
from openmercury.text.tokenizer import Tokenizer

T = TypeVar("T")

Newline = Literal["\n", "\r\n"]
Count = Callable[[str], int]  # tokens of a text

SNIPPETS, SNIPPET, FILE, REGION, HISTORY = (
    "recently_viewed_code_snippets", "recently_viewed_code_snippet", "current_file_content", "code_to_edit",
    "edit_diff_history",
)  # fmt: skip
ORIGINAL, UPDATE = "original_code", "update_snippet"
CURSOR = "<|cursor|>"
ACCEPTED = "// User accepted prediction:"
SNIPPET_PATH, FILE_PATH = "code_snippet_file_path: ", "current_file_path: "
NO_EDIT = "None"

EDIT_SYSTEM = (
    "You predict the next edit of a programmer. You get a file with the code to edit between <|code_to_edit|> and "
    "<|/code_to_edit|> and the caret at <|cursor|>, other code seen lately, and the last edits as diffs, oldest first. "
    "Continue what those edits began: write the code to edit as it will be after the next edit, and nothing else, in "
    "one markdown code block. Write None where nothing is to be changed."
)
APPLY_SYSTEM = (
    "You merge an update into a file. In the update, comments such as `... existing code ...` stand for code that "
    "stays as it is. Write the whole merged file, and nothing else, in one markdown code block."
)


@dataclass(frozen=True)
class Snippet:
    """Code seen lately."""

    path: str
    code: str


@dataclass(frozen=True)
class Change:
    """One edit as a unified diff; `predicted`: the user took it over from a suggestion."""

    diff: str
    predicted: bool = False


@dataclass(frozen=True)
class NextEdit:
    """What is known of an edit to come: `region` is to be rewritten, and stands between `above` and `below`.

    `cursor` is an offset into the region. Snippets come in the client's order, the history is oldest first.
    """

    path: str
    above: str
    region: str
    below: str
    cursor: int | None = None
    snippets: tuple[Snippet, ...] = ()
    history: tuple[Change, ...] = ()
    newline: Newline = "\n"


@dataclass(frozen=True)
class Merge:
    """A file and a snippet to merge into it."""

    original: str
    update: str
    newline: Newline = "\n"


# --- reading messages ------------------------------------------------------------------------------------------------


def parse_next_edit(message: str) -> NextEdit:
    """Read a message; its sections may come in any order, and all but the code to edit may be missing.

    Raises InputError where no code to edit is marked.
    """
    text, newline = _lines(message)
    file, others = _cut(text, FILE)
    if file is None:
        file, others = _without(text, (SNIPPETS, HISTORY)), text
    if _open(REGION) not in file:
        raise InputError(f"the message marks no code to edit: put it between {_open(REGION)} and {_close(REGION)}")
    above, rest = file.removeprefix("\n").split(_open(REGION), 1)
    path = ""
    if above.startswith(FILE_PATH.strip()):
        first, _, above = above.partition("\n")
        path = first.removeprefix(FILE_PATH.strip()).strip()
    region, _, below = rest.rpartition(_close(REGION)) if _close(REGION) in rest else (rest, "", "")
    region = region.removeprefix("\n").removesuffix("\n")
    history, others = _cut(others, HISTORY)
    return NextEdit(
        path=path,
        above=above.replace(CURSOR, ""),
        region=region.replace(CURSOR, ""),
        below=below.removeprefix("\n").removesuffix("\n").replace(CURSOR, ""),
        cursor=region.index(CURSOR) if CURSOR in region else None,
        snippets=tuple(map(_snippet, _all(others, SNIPPET))),
        history=tuple(_changes(history or "")),
        newline=newline,
    )


def parse_merge(message: str) -> Merge:
    """Read a message of `apply`; raises InputError where file or update are missing."""
    text, newline = _lines(message)
    parts = []
    for tag, what in ((ORIGINAL, "code"), (UPDATE, "update")):
        part, text = _cut(text, tag)
        if part is None:
            raise InputError(f"the message holds no {what}: put it between {_open(tag)} and {_close(tag)}")
        parts.append(part.removeprefix("\n").removesuffix("\n"))
    return Merge(parts[0], parts[1], newline)


def _open(tag: str) -> str:
    return f"<|{tag}|>"


def _close(tag: str) -> str:
    return f"<|/{tag}|>"


def _lines(message: str) -> tuple[str, Newline]:
    crlf = message.count("\r\n")
    return message.replace("\r\n", "\n"), "\r\n" if crlf > message.count("\n") - crlf else "\n"


def _cut(text: str, tag: str) -> tuple[str | None, str]:
    """The inside of a section, from its first opening to its last closing, and the text without it.

    One that is not closed ends where another begins. None: there is no such section.
    """
    before, opened, rest = text.partition(_open(tag))
    if not opened:
        return None, text
    if _close(tag) in rest:
        inside, _, behind = rest.rpartition(_close(tag))
        return inside, before + behind
    others = "|".join(re.escape(_open(each)) for each in (SNIPPETS, FILE, HISTORY, ORIGINAL, UPDATE))
    following = re.search(others, rest)
    end = following.start() if following else len(rest)
    return rest[:end], before + rest[end:]


def _without(text: str, tags: Iterable[str]) -> str:
    for tag in tags:
        _, text = _cut(text, tag)
    return text


def _all(text: str, tag: str) -> list[str]:
    """The insides of all sections of this kind."""
    return re.findall(rf"(?s){re.escape(_open(tag))}\n?(.*?)\n?{re.escape(_close(tag))}", text)


def _snippet(inside: str) -> Snippet:
    first, _, code = inside.partition("\n")
    mark = SNIPPET_PATH.strip()
    return Snippet(first.removeprefix(mark).strip(), code) if first.startswith(mark) else Snippet("", inside)


def _changes(history: str) -> Iterator[Change]:
    """Diffs begin at their two lines of file names; Zed says before one that it was a prediction."""
    begins = [found.start() for found in re.finditer(rf"(?m)^(?:{re.escape(ACCEPTED)}\s*)?--- .*\n\+\+\+ ", history)]
    for begin, end in itertools.pairwise([0, *begins, len(history)]):
        part = history[begin:end].strip("\n")
        diff = part.removeprefix(ACCEPTED).strip("\n")
        if diff:
            yield Change(diff, part.startswith(ACCEPTED))


# --- writing messages ------------------------------------------------------------------------------------------------


def render_next_edit(edit: NextEdit) -> str:
    """The message, in the order of Mercury's documentation."""
    snippets = [_section(SNIPPET, f"{SNIPPET_PATH}{each.path}\n{each.code}") for each in edit.snippets]
    history = [f"{ACCEPTED}\n{each.diff}\n" if each.predicted else f"{each.diff}\n" for each in edit.history]
    region = edit.region
    if edit.cursor is not None:
        region = region[: edit.cursor] + CURSOR + region[edit.cursor :]
    file = f"{FILE_PATH}{edit.path}\n{edit.above}{_section(REGION, region)}\n{edit.below}"
    sections = ((SNIPPETS, "\n".join(snippets)), (FILE, file), (HISTORY, "".join(history)))
    return "\n\n".join(_section(*each) for each in sections).replace("\n", edit.newline)


def render_merge(merge: Merge) -> str:
    """The message of `apply`."""
    sections = (_section(ORIGINAL, merge.original), _section(UPDATE, merge.update))
    return "\n\n".join(sections).replace("\n", merge.newline)


def _section(tag: str, inside: str) -> str:
    return f"{_open(tag)}\n{inside}\n{_close(tag)}"


# --- prompts ---------------------------------------------------------------------------------------------------------


def edit_messages(edit: NextEdit) -> list[dict[str, str]]:
    """The conversation that asks for an edit."""
    content = _as_prompted(edit)
    return [{"role": "system", "content": EDIT_SYSTEM}, {"role": "user", "content": content}]


def _as_prompted(edit: NextEdit) -> str:
    """The message as the model reads it, however the client ends lines."""
    return render_next_edit(replace(edit, newline="\n"))


def merge_messages(merge: Merge) -> list[dict[str, str]]:
    """The conversation that asks for a merged file."""
    content = render_merge(replace(merge, newline="\n"))
    return [{"role": "system", "content": APPLY_SYSTEM}, {"role": "user", "content": content}]


def merge_marks(merge: Merge) -> str:
    """The marks around the merged file, which is written from behind the first to before the second."""
    return fence(f"{merge.original}\n{merge.update}")


def merge_ids(tokenizer: Tokenizer, merge: Merge) -> list[int]:
    """Token ids of the conversation up to where the code block of the answer begins."""
    return [*chat.render(tokenizer, merge_messages(merge)), *tokenizer.encode(f"{merge_marks(merge)}\n")]


def fence(text: str) -> str:
    """The marks of a code block that can hold `text`: longer than any in it."""
    return "`" * max(3, 1 + max(map(len, re.findall(r"(?m)^[ \t]*(`{3,})", text)), default=0))


def fenced(text: str) -> str:
    """`text` as a code block."""
    marks = fence(text)
    return f"{marks}\n{text}\n{marks}"


def fit(edit: NextEdit, count: Count, budget: int) -> NextEdit:
    """The edit with as much around its region as a message of `budget` tokens holds: whole lines, snippets, changes.

    Of what the region leaves, changes may take a quarter, the newest first, and snippets a quarter; the rest is for the
    lines nearest to the region. Raises ContextOverflowError where the region alone is too long.
    """
    if count(_as_prompted(edit)) <= budget:
        return edit
    room = budget - count(_as_prompted(replace(edit, above="", below="", snippets=(), history=())))
    if room < 0:
        raise ContextOverflowError(
            f"the code to edit needs {budget - room} tokens and there is room for {budget}: mark fewer lines"
        )
    changes, spent = _within(edit.history[::-1], room // 4, lambda each: count(f"{ACCEPTED}\n{each.diff}\n"))
    snippets, more = _within(
        edit.snippets, room // 4, lambda each: count(_section(SNIPPET, f"{SNIPPET_PATH}{each.path}\n{each.code}\n"))
    )
    room -= spent + more
    before, behind = edit.above.splitlines(keepends=True)[::-1], edit.below.splitlines(keepends=True)
    _, spent = _within(before, room // 2, count)
    below, spent = _within(behind, room - spent, count)
    above, _ = _within(before, room - spent, count)
    return replace(
        edit, above="".join(above[::-1]), below="".join(below), snippets=tuple(snippets), history=tuple(changes[::-1])
    )


def _within(items: Sequence[T], room: int, cost: Callable[[T], int]) -> tuple[list[T], int]:
    """The first items that fit into the room, up to one that does not, and what they cost."""
    kept, spent = [], 0
    for item in items:
        price = cost(item)
        if spent + price > room:
            break
        kept.append(item)
        spent += price
    return kept, spent


# --- answers ---------------------------------------------------------------------------------------------------------


def read_edit(answer: str, edit: NextEdit) -> str | None:
    """The new text of the region by an answer, or None where nothing is suggested or nothing would change.

    The answer may be a code block, with or without tags and words around it, or bare code. Where all of it has lost the
    region's indentation that is put back, and the last line ends as the region's does.
    """
    text = _bare(answer, edit.region)
    if text.strip() == NO_EDIT:
        return None
    if edit.region.endswith("\n") != text.endswith("\n"):
        text = text.rstrip("\n") + "\n" * edit.region.endswith("\n")
    text = _indented(text, edit.region)
    return None if text == edit.region else text.replace("\n", edit.newline)


def render_edit(text: str | None) -> str:
    """The answer that gives the region this text: what is sent to clients, and what a training row ends with."""
    return NO_EDIT if text is None else fenced(text)


def _bare(answer: str, region: str) -> str:
    text = answer.replace("\r\n", "\n")
    found = re.search(r"(?m)^[ \t]*(`{3,}|~{3,})[^`\n]*\n", text)
    if found:
        text = text[found.end() :]
        ends = list(re.finditer(rf"(?m)^[ \t]*{re.escape(found[1])}[ \t]*$", text))
        if ends:  # code that holds such marks itself is taken to the last of them
            text = text[: ends[-1 if fence(region) != "```" else 0].start()].removesuffix("\n")
    if _open(REGION) in text:
        text = text.partition(_open(REGION))[2].removeprefix("\n")
    if _close(REGION) in text:
        text = text.partition(_close(REGION))[0].removesuffix("\n")
    return text.replace(CURSOR, "")


def _indented(text: str, region: str) -> str:
    """`text`, moved right where the lines it shares with the region all stand further left by one and the same."""
    stood = {line.strip(): _indent(line) for line in region.split("\n") if line.strip()}
    shared = [(stood[line.strip()], _indent(line)) for line in text.split("\n") if line.strip() in stood]
    missing = {old.removesuffix(new) if old.endswith(new) else None for old, new in shared}
    if len(missing) != 1 or not (lost := missing.pop()):
        return text
    return re.sub(r"(?m)^(?=.)", lambda _: lost, text)


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
