"""Requests for changes: an instruction and code, a snippet to merge into a file, the next edit after those before it.

Kinds made here: edit (a chat), apply and next_edit (the messages that clients send to those endpoints; a third of the
merges are asked for in a chat). The changes are rewrites made by rule, or what a function became in a later release.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from openmercury.data.functions import Function
from openmercury.data.prompts.code import without_docstring
from openmercury.data.prompts.prompt import Prompt, fill, pick, rank
from openmercury.data.prompts.rewrites import Rewrite, elide, hunks, rewrites
from openmercury.text import edit as form

_EDIT = (
    (
        "Edit the code as instructed. Answer with the whole edited code in one markdown code block.\n\n"
        "Instruction: {asked}\n\n```python\n{code}\n```"
    ),
    "{asked}\n\n```python\n{code}\n```",
    "```python\n{code}\n```\n\n{asked}",
    "{asked} Return the whole code.\n\n```python\n{code}\n```",
    "Here is my code:\n```python\n{code}\n```\n{asked} Only the code, please.",
    "Modify this code: {asked}\n```python\n{code}\n```",
    "Please change the code below. {asked}\n\n{code}",
    "Make this change and show the full result.\n\nChange: {asked}\n\nCode:\n```\n{code}\n```",
    "{asked}\n{code}",
)
_APPLY = (
    (
        "Merge the update into the code. In the update, a comment `{kept}` stands for code that stays as it is. Answer "
        "with the whole merged code in one markdown code block.\n\nCode:\n```python\n{code}\n```\n\n"
        "Update:\n```python\n{update}\n```"
    ),
    (
        "Apply this edit to the file and return the whole file.\n\nFile:\n```python\n{code}\n```\n\n"
        "Edit:\n```python\n{update}\n```"
    ),
    (
        "Original:\n```python\n{code}\n```\n\nChanged parts (`{kept}` marks what is unchanged):\n```python\n{update}\n"
        "```\n\nWrite the complete updated code."
    ),
)
_KEPT = (
    "# ... existing code ...",
    "# ... existing code ...",
    "# ... existing code ...",
    "# ... rest of the code ...",
    "# (unchanged)",
    "# existing code",
)
# What can be asked of code that has something: the base finds the change itself.
_OPEN: tuple[tuple[str, str], ...] = (
    (r"", "Add type hints to all parameters and the return value."),
    (r"", "Add a docstring that describes the parameters and the return value."),
    (r"", "Add short comments that explain each step."),
    (r"", "Split the function into two smaller ones."),
    (r"", "Give the variables more descriptive names."),
    (r"", "Add input validation that raises ValueError with a clear message."),
    (r"", "Add a doctest to the docstring."),
    (r"", "Add a `main()` function that shows how to call it, behind a `__main__` guard."),
    (r"", "Cache the results with functools.lru_cache."),
    (r"", "Make the code shorter without changing what it does."),
    (r"", "Log the arguments at debug level at the start and the result before returning."),
    (r"", "Measure how long it takes and print that in milliseconds."),
    (r"", "Turn it into a method of a class with a suitable name."),
    (r"", "Make it an async function."),
    (r"\bfor \w+ in [^\n]*:\n[^\n]*\.append\(", "Replace the loop that appends by a list comprehension."),
    (r"\bfor \w+ in range\(len\(", "Use enumerate instead of range(len(...))."),
    (r"\bfor ", "Replace the for loop by a while loop."),
    (r"['\"] % |\.format\(", "Use f-strings."),
    (r"\bif [^\n]*:\n[^\n]*\n\s*else:", "Use an early return in place of the else branch."),
    (r"\bif [^\n]*:\n[^\n]*return", "Rewrite the conditions as a match statement."),
    (r"os\.path", "Use pathlib in place of os.path."),
    (r"\bopen\(", "Use a with statement for files and set the encoding to utf-8."),
    (r"\braise \w+\(", "Define a custom exception class and raise that."),
    (r"\bsorted\(|\.sort\(", "Add a `reverse` parameter that sorts in descending order."),
    (r"\breturn \[|\breturn list\(", "Make it a generator that yields the items one by one."),
    (r"\breturn ", "Return a tuple of the result and the number of items processed."),
    (r"\.split\(|\.lower\(|\.strip\(", "Make it case-insensitive and ignore surrounding white space."),
    (r"\bnp\.", "Do it without numpy."),
    (r"\bprint\(", "Return the text instead of printing it."),
    (r"\bdict\(|\{\}", "Use collections.defaultdict."),
    (r"\bisinstance\(", "Accept lists as well as tuples wherever a type is checked."),
    (r"\btry:", "Let exceptions pass instead of catching them."),
    (r"\[0\]|\[-1\]", "Handle an empty input without an exception."),
    (r" \+= 1\b", "Count with collections.Counter."),
)
LONGEST = 2_000  # characters of code that is shown
MOST_SEEN = 800  # of a function seen lately


def edit_prompts(function: Function, others: Sequence[Function], path: str, seed: int) -> Iterator[Prompt]:
    """At most one prompt of each kind about changes to a function; `others` are of the same file."""
    bare = rank(seed, "bare edit", function.id) % 2 == 0
    code = _code(function, bare)
    made = list(rewrites(function, code, seed)) if len(code) <= LONGEST else []
    open_ = [asked for pattern, asked in _OPEN if re.search(pattern, code)]
    if 80 <= len(code) <= LONGEST:
        ruled = made and rank(seed, "asked", function.id) % 5 < 3
        asked = made[0].instruction if ruled else pick(open_, seed, "open", function.id)
        if len(made) > 1 and rank(seed, "two", function.id) % 8 == 0:
            asked = f"{made[0].instruction} {made[1].instruction}"
        yield _edit(function, asked, code, seed)
    file = _file(function, others, seed)
    whole = next(iter(rewrites(function, file, seed)), None) if len(file) <= LONGEST else None
    if whole is not None and len(file) > 200:
        yield _apply(function, whole, seed)
    several = [each for each in made if len(hunks(each.before, each.after)) > 1]
    if several:
        yield _next_edit(function, several[0], path, seed, others)


def release_prompts(old: Function, new: Function, path: str, seed: int) -> Iterator[Prompt]:
    """The same of what a function became in a later release; its patch takes the place of an instruction."""
    before, after = (_code(each, False) for each in (old, new))
    runs = hunks(before, after)
    changed = sum(end - begin + last - first for begin, end, first, last in runs)
    if not 1 <= changed <= 40 or max(len(before), len(after)) > LONGEST or len(before) < 120:
        return
    change = Rewrite(f"Apply this patch.\n```diff\n{_diff(before, after, path)}\n```\n", before, after)
    if changed <= 12:
        yield _edit(new, change.instruction, before, seed)
    yield _apply(new, change, seed)
    if len(runs) > 1:
        yield _next_edit(new, change, path, seed)


def _code(function: Function, bare: bool) -> str:
    text = without_docstring(function) if bare else function.source
    return "\n".join([*function.imports, "", "", text]) if function.imports else text


def _file(function: Function, others: Sequence[Function], seed: int) -> str:
    """The function with up to two others of its file around it."""
    wanted = rank(seed, "around", function.id) % 3
    around = [each for each in others if each.name != function.name][:wanted]
    cut = rank(seed, "cut", function.id) % (len(around) + 1)
    parts = [*around[:cut], function, *around[cut:]]
    imports = sorted({line for each in parts for line in each.imports})
    text = "\n\n\n".join(each.source for each in parts)
    return "\n".join([*imports, "", "", text]) if imports else text


def _made(function: Function, kind: str, **texts: Any) -> Prompt:
    key = f"{kind}/{rank(kind, function.id):015x}"
    about: dict[str, Any] = {"code": function.source, "name": function.name, "description": function.summary}
    return Prompt(key, kind, source=function.id, **about, **texts)


def _edit(function: Function, asked: str, code: str, seed: int) -> Prompt:
    template = pick(_EDIT, seed, "edit form", function.id)
    text = fill(template, {"asked": asked, "code": code})
    # An instruction may end with a block of its own.
    return _made(function, "edit", content=re.sub(r"```\n( |\n{2,})", "```\n\n", text).rstrip())


def _apply(function: Function, change: Rewrite, seed: int) -> Prompt:
    kept = pick(_KEPT, seed, "kept", function.id)
    update = elide(change.before, change.after, kept)
    place = rank(seed, "apply form", function.id) % (3 * len(_APPLY))
    if place < len(_APPLY):
        values = {"kept": kept, "code": change.before, "update": update}
        return _made(function, "apply", content=fill(_APPLY[place], values))
    return _made(function, "apply", message=form.render_merge(form.Merge(change.before, update)))


def _next_edit(function: Function, change: Rewrite, path: str, seed: int, others: Sequence[Function] = ()) -> Prompt:
    """The first run of changes is history, the region holds the second; now and then all is done already."""
    old, new = change.before.split("\n"), change.after.split("\n")
    first, second = hunks(change.before, change.after)[:2]
    now = [*new[: first[3]], *old[first[1] :]]
    moved = first[3] - first[1]
    begin, end = second[0] + moved, second[1] + moved
    if rank(seed, "done", function.id) % 12 == 0:
        now, (begin, end) = new, second[2:]
    above = 1 + rank(seed, "above", function.id) % 3
    below = 1 + rank(seed, "below", function.id) % 6
    begin, end = max(0, begin - above), min(len(now), end + below)
    region = "\n".join(now[begin:end])
    seen = [each for each in others if each.name != function.name][: rank(seed, "seen", function.id) % 2]
    asked = form.NextEdit(
        path=path,
        above="".join(f"{line}\n" for line in now[:begin]),
        region=region,
        below="\n".join(now[end:]),
        cursor=rank(seed, "cursor", function.id) % (len(region) + 1),
        snippets=tuple(form.Snippet(path, each.source) for each in seen if len(each.source) < MOST_SEEN),
        history=(form.Change(_diff(change.before, "\n".join([*new[: first[3]], *old[first[1] :]]), path)),),
    )
    return _made(function, "next_edit", message=form.render_next_edit(asked))


def _diff(before: str, after: str, path: str) -> str:
    lines = difflib.unified_diff(before.split("\n"), after.split("\n"), f"a/{path}", f"b/{path}", n=2, lineterm="")
    return "\n".join(lines)
