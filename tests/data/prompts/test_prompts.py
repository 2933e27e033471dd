"""Requests read well, stubs are Python, holes close again, and worked examples are true."""

from __future__ import annotations

import ast
import json
import lzma
from pathlib import Path

import pytest

from openmercury.data.config import PromptCounts, PromptRecipe
from openmercury.data.document import Document
from openmercury.data.functions import Function, functions, summary_of
from openmercury.data.prompts.chats import chats
from openmercury.data.prompts.code import (
    doctest_asserts,
    fim_prompt,
    function_prompts,
    imperative,
    stub,
    third_person,
    trim_doc,
)
from openmercury.data.prompts.collect import Pile, choose
from openmercury.data.prompts.exercises import exercises
from openmercury.data.prompts.prompt import Check, Prompt
from openmercury.data.prompts.tasks import exercise_prompt, exercise_stub, gsm8k_prompt, mbpp_prompts, worked_prompts
from openmercury.data.prompts.worked import worked

SOURCE = '''
import math
from .local import helper

def _area(radius, scale=1.0):
    """Returns the area of a scaled circle.

    Longer text with :func:`math.pow`.

    >>> area(0)
    0.0
    """
    if radius < 0:
        raise ValueError(radius)
    return math.pi * (radius * scale) ** 2

class Shape:
    def grow(self, by):
        """Return a larger copy of the shape by a given factor."""
        size = helper(by)
        return size
'''


@pytest.fixture
def found() -> list[Function]:
    return list(functions(Document("pkg==1:m.py", SOURCE, "python", "MIT", "m.py")))


def test_functions(found: list[Function]) -> None:
    area, grow = found
    assert (area.name, area.arguments, area.imports) == ("area", "radius, scale", ("import math",))
    assert area.self_contained
    assert "`math.pow`" in area.doc
    assert area.source.startswith("def area(radius")
    assert (grow.owner, grow.self_contained) == ("Shape", False)


def test_stub_is_python(found: list[Function]) -> None:
    tree = ast.parse(stub(found[0]))
    assert ast.get_docstring(tree.body[-1], clean=True) == found[0].doc  # type: ignore[arg-type]


def test_prompts_are_stable_and_of_different_kinds(found: list[Function]) -> None:
    made = list(function_prompts(found[0], 1, 5))
    assert made == list(function_prompts(found[0], 1, 5))
    kinds = [prompt.kind for prompt in made]
    assert kinds[0] == "complete"
    assert len(set(kinds)) == len(kinds) >= 4
    assert not any("{" in prompt.content for prompt in made if prompt.kind != "code")


@pytest.mark.parametrize("seed", range(12))
def test_fim_closes(found: list[Function], seed: int) -> None:
    hole = fim_prompt(found[0], seed)
    if hole is not None:
        whole = hole.prefix + hole.middle + hole.suffix
        assert whole == "import math\n\n\n" + found[0].source + "\n"
        assert hole.row()["suffix"] == hole.suffix


@pytest.mark.parametrize(
    ("sentence", "verb"),
    [
        ("Returns the sum.", "return the sum"),
        ("Copies a file.", "copy a file"),
        ("Matches a word.", "match a word"),
        ("The area of a circle.", None),
    ],
)
def test_imperative(sentence: str, verb: str | None) -> None:
    assert imperative(sentence) == verb
    if verb is not None:
        assert third_person(verb).capitalize() + "." == sentence


def test_docstrings() -> None:
    assert summary_of("Helper for the class.") is None
    assert summary_of("Return the sum of ``a``, e.g. of 1 and 2. More.") == "Return the sum of `a`, e.g. of 1 and 2."
    doc = "Sum of values.\n\nSee Also\n--------\nother\n\nReturns\n-------\nint"
    assert trim_doc(doc, "f", 500) == "Sum of values.\n\nReturns\n-------\nint"
    assert doctest_asserts("x\n\n>>> f(1)\n2\n>>> f(2)\n<object>\n", "f") == ["assert f(1) == 2"]
    assert doctest_asserts(">>> f(x)\n2\n>>> f(1), f(2)\n(1, 2)\n>>> f(2)  # doctest: +SKIP\n2\n", "f") == []
    assert doctest_asserts(">>> f(len, [1])\n2\n", "f") == ["assert f(len, [1]) == 2"]


def test_exercises() -> None:
    made = exercises(300, 5)
    assert made == exercises(300, 5)
    assert len(made) == 300
    for exercise in made:
        for kind in ("exercise", "port"):
            prompt = exercise_prompt(exercise, kind, 0)
            assert prompt is None or not any(mark in prompt.content for mark in ("{edge}", "{lower", "[k]", "  "))
        text = exercise_stub(exercise, 0)
        assert text is None or ast.parse(text).body
    assert len(set(chats(200, 1))) == 200


def test_worked_examples() -> None:
    tasks = {task.task: task for task in worked(0)}
    task = tasks["Return the sum of the numbers in a list that are even"]
    for arguments, result in task.examples:
        assert sum(x for x in ast.literal_eval(arguments) if x % 2 == 0) == int(result)
    for task in tasks.values():
        complete, _ = worked_prompts(task, 0)
        assert f">>> {task.name}({task.examples[0][0]})" in complete.content
        if complete.content.startswith("def ") and complete.content.endswith('"""'):
            ast.parse(complete.content)


def test_choice_is_capped_distinct_and_sampled() -> None:
    pile = Pile([Prompt(f"chat/{i}", "chat", f"Question {i % 50}?") for i in range(100)])
    recipe = PromptRecipe(packages=(), licences=(), counts=PromptCounts(chat=40))
    chosen = choose(pile, recipe)
    assert len({prompt.content for prompt in chosen}) == len(chosen) == 40
    assert pile.drops["duplicate"] + pile.drops["beyond the count of chat"] == 60
    assert choose(Pile(pile.prompts[::-1]), recipe) == chosen


def test_any_prefix_is_a_fair_sample_and_the_head_shares_no_source() -> None:
    many = [Prompt(f"code/{i}", "code", f"Explain f{i}", source=f"f{i // 4}") for i in range(4000)]
    pile = Pile([*many, *(Prompt(f"chat/{i}", "chat", f"What is {i}?") for i in range(400))])
    recipe = PromptRecipe(packages=(), licences=(), counts=PromptCounts(chat=400, code=1600), held_out=100)
    chosen = choose(pile, recipe)
    for end in (100, 500, 1000):
        assert 0.7 < sum(prompt.kind == "chat" for prompt in chosen[:end]) / end / 0.2 < 1.4
    head, rest = ({prompt.source for prompt in part if prompt.source} for part in (chosen[:100], chosen[100:]))
    assert head
    assert not head & rest
    assert pile.drops["source is held out"] == 2000 - len(chosen) > 0


def test_what_carries_a_check(found: list[Function]) -> None:
    made = {prompt.kind: prompt for prompt in function_prompts(found[0], 1, 5)}
    assert made["complete"].check == Check("area", "import math", "assert area(0) == 0.0")
    assert made["port"].check is made["code"].check is None
    task = next(worked(0))
    for prompt in worked_prompts(task, 0):
        assert prompt.check is not None
        assert prompt.check.after.count("assert ") == len(task.cases) == 8
    row = {
        "text": "Add.",
        "code": "def add(a, b):\n    return a + b",
        "task_id": 601,
        "test_list": ["assert add(1, 2) == 3"],
    }
    forms = list(mbpp_prompts(row))
    assert [prompt.check is None for prompt in forms] == [False, False, True, False, False, False]
    sums = [gsm8k_prompt(number, {"question": "1 + 1?", "answer": "So\n#### 1,002"}, 0) for number in range(20)]
    assert {prompt.check.after for prompt in sums if prompt.check} == {"assert abs(float(solution()) - 1002.0) < 1e-6"}
    assert any(prompt.check is None for prompt in sums)


def test_row_round_trip() -> None:
    row = Prompt("a", "chat", "Hé?", system="Be brief.", check=Check("f", "", "assert f()")).row()
    assert row["check"]["name"] == "f"
    data = lzma.compress(json.dumps(row, ensure_ascii=False).encode())
    assert json.loads(lzma.decompress(data)) == row
    assert Path("prompts.jsonl.xz").suffix == ".xz"
