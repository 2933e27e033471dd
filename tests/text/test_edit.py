"""Messages of next edit and apply as clients write them, prompts that fit, and answers as models write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmercury.errors import ContextOverflowError, InputError
from openmercury.text import edit
from openmercury.text.edit import Change, Merge, NextEdit, Snippet

MESSAGE = """<|recently_viewed_code_snippets|>
<|recently_viewed_code_snippet|>
code_snippet_file_path: src/util.py
def helper():
    return 1
<|/recently_viewed_code_snippet|>

<|recently_viewed_code_snippet|>
code_snippet_file_path: src/more.py
X = 2
<|/recently_viewed_code_snippet|>
<|/recently_viewed_code_snippets|>

<|current_file_content|>
current_file_path: src/main.py
import util

<|code_to_edit|>
def main():
    x<|cursor|> = util.helper()
<|/code_to_edit|>

main()
<|/current_file_content|>

<|edit_diff_history|>
--- a/src/main.py
+++ b/src/main.py
@@ -1,1 +1,1 @@
-import os
+import util

// User accepted prediction:
--- a/src/util.py
+++ b/src/util.py
@@ -1,1 +1,1 @@
-def h():
+def helper():

<|/edit_diff_history|>"""

READ = NextEdit(
    path="src/main.py",
    above="import util\n\n",
    region="def main():\n    x = util.helper()",
    below="\nmain()",
    cursor=17,
    snippets=(Snippet("src/util.py", "def helper():\n    return 1"), Snippet("src/more.py", "X = 2")),
    history=(
        Change("--- a/src/main.py\n+++ b/src/main.py\n@@ -1,1 +1,1 @@\n-import os\n+import util"),
        Change("--- a/src/util.py\n+++ b/src/util.py\n@@ -1,1 +1,1 @@\n-def h():\n+def helper():", predicted=True),
    ),
)


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_message_as_documented() -> None:
    assert edit.parse_next_edit(MESSAGE) == READ


def test_sections_come_in_any_order() -> None:
    parts = MESSAGE.split("\n\n<|current_file_content|>")
    file, history = parts[1].split("\n\n<|edit_diff_history|>")
    pieces = [parts[0], "<|current_file_content|>" + file, "<|edit_diff_history|>" + history]
    for order in ((2, 1, 0), (1, 0, 2), (1, 2, 0)):
        assert edit.parse_next_edit("\n".join(pieces[each] for each in order)) == READ


def test_windows_line_ends_are_kept_apart() -> None:
    found = edit.parse_next_edit(MESSAGE.replace("\n", "\r\n"))
    assert found == NextEdit(**{**vars(READ), "newline": "\r\n"})
    assert edit.read_edit("```\ndef main():\n    pass\n```", found) == "def main():\r\n    pass"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("<|code_to_edit|>\na\n<|/code_to_edit|>", NextEdit("", "", "a", "")),
        ("<|code_to_edit|>a<|/code_to_edit|>", NextEdit("", "", "a", "")),
        ("up\n<|code_to_edit|>\na<|cursor|>b\n", NextEdit("", "up\n", "ab", "", cursor=1)),
        (
            "<|current_file_content|>\nx<|cursor|>\n<|code_to_edit|>\na\n<|/code_to_edit|>\ny\n",
            NextEdit("", "x\n", "a", "y"),
        ),
        (
            "<|recently_viewed_code_snippets|>\n\n<|/recently_viewed_code_snippets|>\n"
            "<|current_file_content|>\ncurrent_file_path:a.py\n<|code_to_edit|>\n\n<|/code_to_edit|>\n"
            "<|/current_file_content|>\n<|edit_diff_history|>\n\n<|/edit_diff_history|>",
            NextEdit("a.py", "", "", ""),
        ),
        (
            "<|edit_diff_history|>\n-a\n+b\n<|current_file_content|>\n<|code_to_edit|>\na\n<|/code_to_edit|>",
            NextEdit("", "", "a", "", history=(Change("-a\n+b"),)),
        ),
        (
            "<|recently_viewed_code_snippet|>no path<|/recently_viewed_code_snippet|>\n"
            "<|current_file_content|>\n<|code_to_edit|>\na\n<|/code_to_edit|>\n<|/current_file_content|>",
            NextEdit("", "", "a", "", snippets=(Snippet("", "no path"),)),
        ),
        (  # a file that speaks of the tags itself
            "<|current_file_content|>\nA = '<|/current_file_content|>'\n<|code_to_edit|>\nB = '<|/code_to_edit|>'\n"
            "<|/code_to_edit|>\n<|/current_file_content|>",
            NextEdit("", "A = '<|/current_file_content|>'\n", "B = '<|/code_to_edit|>'", ""),
        ),
    ],
)
def test_lenience(message: str, expected: NextEdit) -> None:
    assert edit.parse_next_edit(message) == expected


def test_a_message_without_code_to_edit_is_refused() -> None:
    for message in ("", "fix my code", "<|current_file_content|>\na\n<|/current_file_content|>"):
        with pytest.raises(InputError, match="code_to_edit"):
            edit.parse_next_edit(message)


TEXT = st.text(st.sampled_from("ab =:\t\n`é-+"), max_size=30)
NAME = st.text(st.sampled_from("ab/._"), max_size=8)
CHANGES = st.builds(
    Change,
    TEXT.map(lambda text: f"--- a/x\n+++ b/x\n@@ -1 +1 @@\n{text.replace('---', '')}".rstrip("\n")),
    st.booleans(),
)


@st.composite
def next_edits(draw: st.DrawFn) -> NextEdit:
    region = draw(TEXT)
    return NextEdit(
        draw(NAME),
        draw(TEXT),
        region,
        draw(TEXT),
        draw(st.none() | st.integers(0, len(region))),
        tuple(draw(st.lists(st.builds(Snippet, NAME, TEXT), max_size=3))),
        tuple(draw(st.lists(CHANGES, max_size=3))),
        draw(st.sampled_from(["\n", "\r\n"])),
    )


@given(next_edits())
def test_what_is_rendered_is_read_again(one: NextEdit) -> None:
    assert edit.parse_next_edit(edit.render_next_edit(one)) == one


@given(TEXT, TEXT, st.sampled_from(["\n", "\r\n"]))
def test_merges_too(original: str, update: str, newline: edit.Newline) -> None:
    one = Merge(original, update, newline)
    assert edit.parse_merge(edit.render_merge(one)) == one


def test_merges_need_both_parts() -> None:
    assert edit.parse_merge("<|update_snippet|>\nb\n<|/update_snippet|><|original_code|>a<|/original_code|>") == Merge(
        "a", "b"
    )
    for message, missing in (
        ("<|original_code|>\na\n<|/original_code|>", "update"),
        ("<|update_snippet|>\na\n<|/update_snippet|>", "code"),
    ):
        with pytest.raises(InputError, match=f"no {missing}"):
            edit.parse_merge(message)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_a_conversation_holds_the_message() -> None:
    system, user = edit.edit_messages(READ)
    assert (system["role"], user["role"]) == ("system", "user")
    assert edit.parse_next_edit(user["content"]) == READ
    assert edit.merge_messages(Merge("a", "b", "\r\n"))[1]["content"].count("\r") == 0


@given(next_edits(), st.integers(0, 400))
def test_what_fits_is_centred_on_the_region(one: NextEdit, more: int) -> None:
    bare = NextEdit(one.path, "", one.region, "", one.cursor)
    budget = len(edit.render_next_edit(bare)) + more
    found = edit.fit(one, len, budget)
    assert len(edit.edit_messages(found)[1]["content"]) <= budget  # as the model reads it, whatever the client's lines
    assert (found.path, found.region, found.cursor) == (one.path, one.region, one.cursor)
    assert one.above.endswith(found.above)
    assert one.below.startswith(found.below)
    assert found.history == one.history[len(one.history) - len(found.history) :]
    assert found.snippets == one.snippets[: len(found.snippets)]


def test_a_long_file_keeps_whole_lines_on_both_sides() -> None:
    lines = [f"line {number}\n" for number in range(1000)]
    one = NextEdit("a.py", "".join(lines[:400]), "here", "".join(lines[400:]))
    found = edit.fit(one, len, 1000)
    assert found.above.startswith("line ")
    assert found.below.endswith("\n")
    assert abs(len(found.above) - len(found.below)) < 20
    assert len(edit.render_next_edit(found)) > 980
    first = NextEdit("a.py", "", "here", "".join(lines))
    assert len(edit.render_next_edit(edit.fit(first, len, 1000))) > 980
    with pytest.raises(ContextOverflowError, match="mark fewer lines"):
        edit.fit(one, len, 50)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("```\nb\n```", "b"),
        ("```python\nb\n```\n", "b"),
        ("~~~\nb\n~~~", "b"),
        ("Here is the code:\n\n```py\nb\n```\nIt says b.\n```\nno\n```", "b"),
        ("```\n<|code_to_edit|>\nb<|cursor|>\n<|/code_to_edit|>\n```", "b"),
        ("<|code_to_edit|>\n```\nb\n```\n<|/code_to_edit|>", "b"),
        ("b", "b"),
        ("```\nb", "b"),
        ("```\r\nb\r\nc\r\n```", "b\nc"),
        ("```\n\n```", ""),
        ("```\nb\n\n```", "b"),
        ("None", None),
        (" None\n", None),
        ("```\nNone\n```", None),
        ("```\na\n```", None),
        ("```\na<|cursor|>\n```", None),
    ],
)
def test_answers(answer: str, text: str | None) -> None:
    assert edit.read_edit(answer, NextEdit("", "", "a", "")) == text


def test_an_answer_that_lost_the_indentation_gets_it_back() -> None:
    one = NextEdit("", "class A:\n", "    def f(self):\n        return 1\n", "")
    expected = "    def f(self):\n        return 2\n"
    assert edit.read_edit("```\ndef f(self):\n    return 2\n```", one) == expected
    assert edit.read_edit("```\n    def f(self):\n        return 2\n```", one) == expected
    assert edit.read_edit("```\ndef f(self):\n    return 1\n```", one) is None
    moved = "    def f(self):\n        return 1\n\ndef g():\n    pass\n"
    assert edit.read_edit(f"```\n{moved}```", one) == moved


def test_code_that_holds_a_code_block() -> None:
    one = NextEdit("", "", "# A\n```\nx\n```\nend", "")
    for text in ("# B\n```\nx\n```\nend", "```\nx\n```", "# C"):
        assert edit.read_edit(edit.render_edit(text), one) == text
    assert edit.read_edit("```\n# B\n```\nx\n```\nend\n```", one) == "# B\n```\nx\n```\nend"


def test_no_suggestion_is_the_word() -> None:
    assert edit.render_edit(None) == "None"
    assert edit.render_edit("a") == "```\na\n```"
