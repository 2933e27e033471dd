"""The right code is taken out of an answer, and cut down to what evalplus would judge."""

from __future__ import annotations

import pytest

from openmercury.eval.tasks.extract import extract, longest_parsable, sanitize

FUNCTION = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    "answer",
    [
        f"```python\n{FUNCTION}```",
        f"Sure:\n\n```py\n{FUNCTION}```\nThis returns `x`.",
        f"```\n{FUNCTION}```",
        f"```python\n{FUNCTION}",
        f"```python\r\n{FUNCTION}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
        f"```python\nimport g\n```\nand\n```python\n{FUNCTION}```\nUse it:\n```python\nprint(f(1))\n```",
        f"```bash\npip install x\n```\n```python\n{FUNCTION}```\n```python\ndef f(x):\n    return 2\n```",
        "1. Like this:\n\n   ```python\n   def f(x):\n       return x\n   ```\n",
        FUNCTION,
    ],
)
def test_extract_finds_the_function(answer: str) -> None:
    assert extract(answer, "f") == FUNCTION


def test_extract_falls_back_to_the_last_block_then_to_the_text() -> None:
    assert extract("```python\na\n```\n```python\ndef ff(x): f(x)\n```\n", "f") == "def ff(x): f(x)\n"
    assert extract("I cannot. ``` is a fence", "f") == "I cannot. ``` is a fence"
    assert extract("", "f") == ""


def test_extract_takes_methods_and_coroutines_as_definitions() -> None:
    block = "class A:\n    async def f (self): ...\n"
    assert extract(f"```\n{block}```\n```\nf\n```", "f") == block


def test_longest_parsable_counts_lines_that_are_not_blank() -> None:
    assert longest_parsable("a = 1\n\n\n\nb = (\nc = 1\nd = 2\ne = 3\n") == "c = 1\nd = 2\ne = 3"
    assert longest_parsable("a\nb\nnot code at all\nc\nd") == "a\nb"
    assert longest_parsable("not code") == "not code"
    assert longest_parsable("") == ""


def test_sanitize_keeps_imports_and_what_the_function_needs() -> None:
    text = (
        "Here it is: the code\n"
        "from __future__ import annotations\n"
        "import os, re\n"
        "LIMIT: int = 3\n"
        "unused = 4\n"
        "def helper(x):\n    return x.limit(LIMIT)\n"
        "def silent(x):\n    print(x)\n"
        "class Node:\n    pass\n"
        "@cache\ndef decorated(x):\n    return x\n"
        "def f(x):\n    return helper(f'{Node}') + silent(decorated(x))\n"
        "def f(x):\n    return 0\n"
        "print(f(1))\n"
    )
    assert sanitize(text, "f") == (
        "import os, re\n"
        "LIMIT: int = 3\n"
        "def helper(x):\n    return x.limit(LIMIT)\n"
        "class Node:\n    pass\n"
        "def f(x):\n    return helper(f'{Node}') + silent(decorated(x))"
    )


def test_sanitize_gives_the_parsable_part_where_nothing_is_left() -> None:
    assert sanitize("oh no, code\nprint(1)\nprint(2)\nby by", "f") == "print(1)\nprint(2)"
