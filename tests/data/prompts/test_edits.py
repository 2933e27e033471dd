"""Rewrites are Python that does what their instruction says; edits and merges read back as what was meant."""

from __future__ import annotations

import ast
import json

import pytest

from openmercury.data.document import Document
from openmercury.data.functions import Function, functions
from openmercury.data.prompts.edits import edit_prompts, release_prompts
from openmercury.data.prompts.rewrites import elide, hunks, rewrites
from openmercury.data.prompts.schemas import json_prompts, tool_prompts
from openmercury.text import edit

SOURCE = '''
import math

def scaled_area(radius, scale=1.0):
    """Return the area of a circle that is scaled by a factor."""
    if radius < 0:
        raise ValueError(radius)
    grown = radius * scale
    for _ in range(7):
        grown = grown + 0
    return math.pi * grown**2

def clamp_to(value, low, high):
    """Return the value moved into the range from low to high."""
    if value < low:
        return low
    return min(value, high)
'''


@pytest.fixture
def found() -> list[Function]:
    return list(functions(Document("pkg==1:m.py", SOURCE, "python", "MIT", "m.py")))


def called(code: str, name: str) -> float:
    names: dict[str, object] = {}
    exec(code, names)
    return names[name](2)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("seed", range(8))
def test_rewrites_keep_what_a_function_does(found: list[Function], seed: int) -> None:
    code = f"import math\n\n\n{found[0].source}"
    made = list(rewrites(found[0], code, seed))
    assert len({each.instruction for each in made}) == len(made) >= 7
    for each in made:
        name = next(node.name for node in ast.parse(each.after).body if isinstance(node, ast.FunctionDef))
        assert each.before == code != each.after
        if "empty" not in each.instruction and "dry_run" not in each.instruction:
            assert called(each.after, name) == called(code, "scaled_area")


def test_a_rename_touches_names_only(found: list[Function]) -> None:
    for seed in range(40):
        for each in rewrites(found[0], found[0].source, seed):
            if "`radius`" in each.instruction and each.instruction.startswith("Rename"):
                new = each.instruction.split("`")[3]
                assert each.after == each.before.replace("radius", new)
                return
    pytest.fail("no rename of radius in 40 seeds")


def test_hunks_and_elided_updates() -> None:
    before = "\n".join(f"    line {number}" for number in range(20))
    after = before.replace("line 3\n", "LINE\n").replace("line 15\n", "line 15\n    more\n")
    assert hunks(before, after) == [(3, 4, 3, 4), (16, 16, 16, 17)]
    update = elide(before, after, "# ...").split("\n")
    assert update[:5] == ["    line 0", "    line 1", "    line 2", "    LINE", "    line 4"]
    assert update.count("    # ...") == 2
    assert "    more" in update
    assert len(update) == 13


def test_prompts_for_edits(found: list[Function]) -> None:
    seen = set()
    for seed in range(12):
        made = {prompt.kind: prompt for prompt in edit_prompts(found[0], found, "pkg/m.py", seed)}
        assert set(made) == {"edit", "apply", "next_edit"}
        assert "scaled_area" in made["edit"].content
        if made["apply"].message:
            merge = edit.parse_merge(made["apply"].row()["message"])
            assert merge.update != merge.original
            ast.parse(merge.original)
        asked = edit.parse_next_edit(made["next_edit"].row()["message"])
        assert asked.path == "pkg/m.py"
        assert len(asked.history) == 1
        seen.add(tuple(snippet.code for snippet in asked.snippets))
        assert asked.cursor is not None
        ast.parse(f"{asked.above}{asked.region}\n{asked.below}")
        assert {prompt.source for prompt in made.values()} == {found[0].id}
    assert seen == {(), (found[1].source,)}


def test_prompts_from_two_releases(found: list[Function]) -> None:
    later = SOURCE.replace("grown = radius * scale", "grown = abs(radius) * scale")
    new = next(functions(Document("pkg==2:m.py", later, "python", "MIT", "m.py")))
    made = {prompt.kind: prompt for prompt in release_prompts(found[0], new, "m.py", 0)}
    assert set(made) == {"edit", "apply"}
    assert "+    grown = abs(radius) * scale" in made["edit"].content
    assert "``` " not in made["edit"].content
    assert list(release_prompts(found[0], found[0], "m.py", 0)) == []


def test_json_and_tools() -> None:
    prompts = list(json_prompts(60, 1))
    assert prompts == list(json_prompts(60, 1))
    told = [prompt.system.removeprefix("Answer in JSON that fulfils this schema: ") for prompt in prompts]
    schemas = [json.loads(text) for text in told if text.startswith("{")]
    assert 15 < len(schemas) < 45
    assert all(schema["properties"] for schema in schemas)
    assert not any("[" in prompt.content or "{fact}" in prompt.content for prompt in prompts)
    for prompt in tool_prompts(60, 1):
        names = [tool["function"]["name"] for tool in prompt.row()["tools"]]
        assert len(set(names)) == len(names) >= 1
        assert "[" not in prompt.content
