"""The modules that know nothing of the page, called in the browser they are written for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(stub: Any, chromium: Any) -> Iterator[Call]:
    """`call(module, body, *values)`: run a function's body with the module as `m` and the values as `v`."""
    page = chromium.new_page()
    page.goto(stub.url)

    def run(module: str, body: str, *values: Any) -> Any:
        code = f"async ([path, v]) => {{ const m = await import(path); {body} }}"
        return page.evaluate(code, [f"{stub.url}playground/{module}", list(values)])

    yield run
    page.close()


def kinds(call: Call, code: str, language: str) -> list[list[str]]:
    runs: list[dict[str, str]] = call("highlight.js", "return m.highlight(...v);", code, language)
    assert "".join(run["text"] for run in runs) == code
    return [[run["kind"], run["text"]] for run in runs if run["kind"]]


def test_python_is_coloured(call: Call) -> None:
    code = '@cache\ndef f(x):  # why\n    return g(x) + 0x1F + 1.5 if x is None else f"a#{x}"\n'
    assert kinds(call, code, "python") == [
        ["decorator", "@cache"], ["keyword", "def"], ["call", "f"], ["comment", "# why"], ["keyword", "return"],
        ["call", "g"], ["number", "0x1F"], ["number", "1.5"], ["keyword", "if"], ["keyword", "is"],
        ["constant", "None"], ["keyword", "else"], ["string", 'f"a#{x}"'],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("language", "code", "wanted"),
    [
        ("js", "// a\nconst s = `b ${c}\n`;", [["comment", "// a"], ["keyword", "const"], ["string", "`b ${c}\n`"]]),
        ("rust", "/* a\n*/ let x: &'a = 'c';", [["comment", "/* a\n*/"], ["keyword", "let"], ["string", "'c'"]]),
        ("sql", "SELECT 1 -- one", [["keyword", "SELECT"], ["number", "1"], ["comment", "-- one"]]),
        ("sh", 'if true # x\n"$y"', [["keyword", "if"], ["constant", "true"], ["comment", "# x"], ["string", '"$y"']]),
        ("json", '{"a": null}', [["string", '"a"'], ["constant", "null"]]),
        ("brainfuck", "if + 1", []),
    ],
)  # fmt: skip
def test_other_languages_are_coloured(call: Call, language: str, code: str, wanted: list[list[str]]) -> None:
    assert kinds(call, code, language) == wanted


@pytest.mark.parametrize(
    "code",
    [
        "",
        '"',
        "'''",
        '"""a\n',
        "/*",
        "`",
        "\\",
        "🜛 = 1\r\n",
        "<script>alert(1)</script>",
        "a" * 5000,
        '"' + "\\" * 4001,
    ],
)
def test_half_written_code_keeps_every_character(call: Call, code: str) -> None:
    for language in ("python", "js", "sql"):
        kinds(call, code, language)


def test_markdown_becomes_blocks_at_their_places(call: Call) -> None:
    text = "See `x`:\n```js\nlet a\n```\n**done**\n```\nb"
    blocks = call("markdown.js", "return m.blocks(...v);", text)
    assert [(block["kind"], block["language"]) for block in blocks] == [
        ("prose", ""),
        ("code", "js"),
        ("prose", ""),
        ("code", ""),
    ]
    for block in blocks:
        for run in block["runs"]:
            assert text[run["start"] :].startswith(run["text"])
    assert [[run["text"] for run in block["runs"]] for block in blocks][::2] == [["See ", "x", ":"], ["done"]]


def test_markdown_of_any_beginning_stays_in_place(call: Call) -> None:
    text = "# T\n\n- a\n```py\nx = 1\n\n```\n\n```\n```\nend **b** `c\n```"
    body = "return v.map((text) => m.blocks(text).every((b) => b.runs.every((r) => text.startsWith(r.text, r.start))));"
    assert all(call("markdown.js", body, *(text[:end] for end in range(len(text) + 1))))


RUN = """
    let clock = 0;
    const run = new m.Run("diffusion", () => clock);
    for (const [at, chunk] of v) { clock = at; run.take(chunk); }
    const steps = run.steps.map((_, index) => run.at(index));
    return { text: run.text, settled: run.settled, finish: run.finish, figures: run.figures(), steps };
"""


def snapshot(content: str, settled: int, finish: str | None = None, **meta: int) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return {"choices": [choice], "diffusion_meta": {"diffusion_content": True, "settled_characters": settled, **meta}}


def test_snapshots_replace_and_every_step_can_be_shown_again(call: Call) -> None:
    run = call(
        "run.js", RUN,
        [0, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}],
        [100, snapshot("░░░", 0, tokens=0, forwards=1)],
        [200, snapshot("🜛 a░", 2, tokens=2, forwards=2)],  # two characters, three UTF-16 units
        [400, snapshot("🜛 abc", 6, "stop", tokens=6, forwards=3)],
        [400, {"choices": [], "usage": {"completion_tokens": 6, "forwards": 3, "tokens_per_forward": 2.0}}],
    )  # fmt: skip
    assert run["steps"] == [
        {"text": "░░░", "settled": 0},
        {"text": "🜛 a░", "settled": 3},
        {"text": "🜛 abc", "settled": 6},
    ]
    assert (run["text"], run["finish"]) == ("🜛 abc", "stop")
    assert run["figures"] == {"tokens": 6, "forwards": 3, "speed": 15, "tpf": 2, "first": 200, "seconds": 0.4}


def test_plain_chunks_append(call: Call) -> None:
    chunks = [[n, {"choices": [{"index": 0, "text": text}]}] for n, text in enumerate("abc")]
    run = call("run.js", RUN, *chunks, [9, {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}])
    assert (run["text"], run["finish"], len(run["steps"])) == ("abc", "length", 4)
    assert run["figures"]["tpf"] is None


def test_a_mask_left_at_the_end_is_dropped(call: Call) -> None:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    assert call("run.js", RUN, [1, snapshot("a b░░", 2)], [2, end])["text"] == "a b"


def test_a_cut_answer_keeps_what_had_settled(call: Call) -> None:
    body = RUN.replace("const steps", 'run.cut("stopped"); const steps')
    run = call("run.js", body, [1, snapshot("one two░", 4)])
    assert (run["text"], run["finish"]) == ("one ", "stopped")
    assert run["steps"] == [{"text": "one two░", "settled": 4}, {"text": "one ", "settled": 4}]
