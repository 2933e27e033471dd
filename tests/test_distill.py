"""Prompts are rendered as requests are, answers are sorted by the recipe's rule, and runs can be split and resumed."""

from __future__ import annotations

import io
import json
import lzma
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from openmercury import distill
from openmercury.config import explain
from openmercury.data.prompts.prompt import Check, Prompt
from openmercury.data.shards import read_manifest, read_shards
from openmercury.distill import Answer, Ask, DistillRecipe, asks, circles, render, verdict
from openmercury.engine.params import SamplingParams
from openmercury.errors import DataError
from openmercury.llm import LLM, Output, Usage
from openmercury.text import chat, edit, fim
from tests.server.made import llm

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
MERGE = edit.Merge("a = 1\nb = 2", "a = 3\n# ... existing code ...")
NEXT = edit.NextEdit("m.py", "", "x = y\n", "print(x)\n", 3)
CHECK = Check("f", "", "assert f() == 1")
PROMPTS = [
    Prompt("chat/0", "chat", "Hi", check=CHECK),
    Prompt("json/0", "json", "Tom, 3", system="Answer in JSON."),
    Prompt("tool/0", "tool", "Call f.", tools=(TOOL,)),
    Prompt("fim/0", "fim", prefix="def f():\n    return ", suffix="\n\nprint(f())\n"),
    Prompt("apply/0", "apply", message=edit.render_merge(MERGE)),
    Prompt("apply/1", "apply", "Merge this."),
    Prompt("next_edit/0", "next_edit", message=edit.render_next_edit(NEXT)),
    Prompt("code/0", "code", "x" * 1500),
]


@pytest.fixture(scope="module")
def model() -> LLM:
    return llm(context=1500)


@pytest.fixture
def recipe(tmp_path: Path, model: LLM, monkeypatch: pytest.MonkeyPatch) -> DistillRecipe:
    path = tmp_path / "prompts.jsonl.xz"
    path.write_bytes(lzma.compress("".join(json.dumps(prompt.row()) + "\n" for prompt in PROMPTS).encode()))
    monkeypatch.setattr(distill, "LLM", lambda *_args, **_kwargs: model)
    return DistillRecipe(
        model=tmp_path, prompts=path, out=tmp_path / "out", wave=2, max_tokens=12, samples=1, keep_cut=True
    )


def run(recipe: DistillRecipe, judge: distill.Judge | None = None) -> tuple[Counter[str], str]:
    screen = Console(file=io.StringIO(), width=200)
    total = distill.distill(recipe, screen, judge)
    return total.outcomes(), screen.file.getvalue()  # type: ignore[attr-defined]


def test_prompts_are_rendered_as_requests_are(model: LLM) -> None:
    rows = {prompt.id: prompt.row() for prompt in PROMPTS}
    tokenizer = model.tokenizer
    hello = [{"role": "user", "content": "Hi"}]
    assert render(model, rows["chat/0"]) == (chat.render(tokenizer, hello), (), None)
    asked = [{"role": "user", "content": "Call f."}]
    assert render(model, rows["tool/0"])[0] == chat.render(tokenizer, asked, tools=[TOOL])
    assert "Answer in JSON." in tokenizer.decode(render(model, rows["json/0"])[0])
    ids, stop, eos = render(model, rows["fim/0"])
    assert ids == fim.render_fill(tokenizer, "def f():\n    return ", "\n\nprint(f())\n")
    assert stop == fim.suffix_stops("\n\nprint(f())\n")
    assert eos is not None
    assert set(eos) >= set(model.config.eos_ids)
    ids, stop, _ = render(model, rows["apply/0"])
    assert tokenizer.decode(ids).endswith("```\n")
    assert stop == ("\n```",)
    assert render(model, rows["next_edit/0"])[0] == chat.render(tokenizer, edit.edit_messages(NEXT))


def test_how_often_a_prompt_is_answered(recipe: DistillRecipe, model: LLM) -> None:
    row = PROMPTS[1].row()
    shared = recipe.model_copy(update={"greedy": 0.6, "samples": 0.4})
    each = [asks(shared, model, number, row) for number in range(500)]
    assert {len(found) for found in each} == {1}
    assert 290 < sum(found[0].params.temperature == 0 for found in each) < 310
    warm = [found[0].params.temperature for found in each if found[0].params.temperature]
    assert 0.7 <= min(warm) < 0.72 < 0.98 < max(warm) <= 1.0
    several = recipe.model_copy(update={"checked_samples": 3.0, "limits": {"chat": 5}})
    found = asks(several, model, 3, PROMPTS[0].row())
    assert [ask.params.temperature > 0 for ask in found] == [False, True, True, True]
    assert {ask.params.max_tokens for ask in found} == {5}
    assert len({ask.params.seed for ask in found}) == 4
    assert len(asks(several, model, 3, row)) == 2


def answer(text: str, finish: Any, ids: tuple[int, ...] = (1, 2), right: bool | None = None) -> Answer:
    judged: Future[bool] | None = None if right is None else Future()
    if judged is not None:
        judged.set_result(right)
    output = Output(text, finish, "ar", Usage(1, len(ids), 1, 1.0), ids)
    return Answer(Ask(0, [1], SamplingParams(), None), {"kind": "chat"}, output, judged)


def test_what_is_kept() -> None:
    assert verdict(answer("a", "stop"), False, set()) == "ended"
    assert verdict(answer("a", "stop", right=True), False, set()) == "ended"
    assert verdict(answer("a", "stop", right=False), False, set()) == "failed"
    assert verdict(answer("a", "length"), False, set()) == "cut off"
    assert verdict(answer("a", "length"), True, set()) == "cut"
    assert verdict(answer("a", "length", (1, 2) * 40), True, set()) == "in circles"
    assert verdict(answer(" \n", "stop"), True, set()) == "empty"
    assert verdict(answer("a", "error"), True, set()) == "error"
    before: set[tuple[int, tuple[int, ...]]] = set()
    assert [verdict(answer("a", "stop"), False, before) for _ in range(2)] == ["ended", "same"]
    assert not circles(range(300))


def test_a_run_in_parts_gives_the_answers_of_one(recipe: DistillRecipe) -> None:
    seen: list[tuple[str, object]] = []

    def judge(text: str, check: Any) -> bool:
        seen.append((text, check["name"]))
        return False

    counts, told = run(recipe, judge)
    assert counts.total() == 2 * len(PROMPTS)
    assert counts["failed"] + counts["same"] == len(seen) == counts["too long a prompt"] == 2
    assert "wave 4 of 4" in told
    whole, manifest = read_shards(recipe.out), read_manifest(recipe.out)
    assert len(whole.length) == counts["ended"] + counts["cut"] > 6
    assert set(manifest.kinds) == {"chat", "fim", "edit", "apply"}
    assert manifest.recipe["outcomes"]["answers"]["chat"]["failed"] >= 1
    for example in whole.each():
        assert example.loss == sorted(example.loss)  # the prompt first
        assert 1 <= sum(example.loss) <= 12

    split = recipe.model_copy(update={"out": recipe.out.with_name("split"), "parts": 2})
    told_of = [run(split.model_copy(update={"part": part}), judge)[1] for part in (1, 0)]
    assert all("wave 2 of 2" in told for told in told_of)
    again = read_shards(split.out)
    assert all((left == right).all() for left, right in zip(whole, again, strict=True))


def test_a_run_goes_on_where_it_stopped(recipe: DistillRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    _, told = run(recipe.model_copy(update={"minutes": 1e-6}))
    assert "3 waves are left for another time" in told
    assert [path.name for path in recipe.out.glob("*.safetensors")] == ["answers-0000000.safetensors"]
    assert len(read_manifest(recipe.out).shards) == 1
    assert "wave 3 of 3" in run(recipe)[1]
    assert len(read_manifest(recipe.out).shards) == 4
    monkeypatch.setattr(distill, "LLM", None)  # nothing is left to be done
    assert run(recipe)[0].total() == 0
    with pytest.raises(DataError, match="another max_tokens: give another out"):
        run(recipe.model_copy(update={"max_tokens": 9}))


def test_the_head_is_held_out_and_the_count_ends(recipe: DistillRecipe) -> None:
    run(recipe.model_copy(update={"skip": 1, "count": 3}))
    assert sorted(path.name for path in recipe.out.glob("*.safetensors")) == [
        "answers-0000001.safetensors",
        "answers-0000003.safetensors",
    ]


@pytest.mark.parametrize(
    ("wrong", "told"), [({"part": 2, "parts": 2}, "numbered from 0"), ({"temperature": [1.0, 0.5]}, "lower end first")]
)
def test_what_does_not_go_together(wrong: dict[str, Any], told: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as error:
        DistillRecipe(model=Path("m"), prompts=Path("p"), out=Path("o"), **wrong)
    assert told in explain(error.value, DistillRecipe)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"kind": "chat"}', '{"kind": "fim", "prefix": "a"}', '{"kind": "next_edit", "messages": []}',
     '{"kind": "chat", "messages": [], "check": {"name": "f"}}'],
)  # fmt: skip
def test_what_is_no_prompt_is_told_by_its_row(recipe: DistillRecipe, tmp_path: Path, line: str) -> None:
    path = tmp_path / "own.jsonl"  # files of one's own need not be packed
    path.write_text(json.dumps(PROMPTS[0].row()) + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"row 2 of .*own.jsonl is no prompt"):
        list(distill.read_prompts(path))


def test_a_folder_of_weights_is_left_alone(recipe: DistillRecipe) -> None:
    recipe.out.mkdir()
    (recipe.out / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(DataError, match="name another folder"):
        run(recipe)
