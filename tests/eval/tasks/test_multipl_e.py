"""What models answer becomes a program that the real toolchain judges rightly.

`multipl_e/*.txt` hold, for each language, a made-up problem in the data set's format (the sum of the numbers and the
extra) and answers to it as models write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from openmercury.errors import DataError, SandboxError
from openmercury.eval import sandbox
from openmercury.eval.sandbox import Verdict
from openmercury.eval.tasks.base import Chat, Continue, Problem, Style
from openmercury.eval.tasks.data import SUMS
from openmercury.eval.tasks.multipl_e import TASKS, MultiPLE
from openmercury.eval.tasks.stitch import stitch
from tests.eval.made import write_rows

STOP = {"cpp": ["\n}"], "java": ["\n    }\n"], "bash": ["\n}"]}
LANGUAGES = ("cpp", "java", "js", "ts", "php", "bash")
SLOW = ("java", "ts")  # a second and more for each program


def sections(language: str) -> Iterator[tuple[str, str, str]]:
    """Kind, name and text of each section of a file."""
    text = (Path(__file__).parent / "multipl_e" / f"{language}.txt").read_text()
    for head, body in re.findall(r"^=== (.*)\n((?:(?!=== ).*\n)*)", text, re.MULTILINE):
        kind, _, name = head.partition(": ")
        yield kind, name, body


def section(language: str, kind: str) -> tuple[str, str]:
    """The name and the text of the only section of a kind."""
    return next((name, text) for found, name, text in sections(language) if found == kind)


RIGHT = [
    pytest.param(language, text, id=f"{language}-{name}", marks=[pytest.mark.slow] if language in SLOW else [])
    for language in LANGUAGES
    for kind, name, text in sections(language)
    if kind == "right"
]


def task(language: str) -> MultiPLE:
    return next(task for task in TASKS.values() if task.language == language)


def problem(language: str, style: str = "chat") -> Problem:
    prompt, tests = section(language, "prompt")[1], section(language, "tests")[1]
    row = {"name": "Made_0_total", "prompt": prompt, "tests": tests, "stop_tokens": STOP.get(language, ["\nfunction "])}
    asked = Chat("?") if style == "chat" else Continue(prompt, tuple(row["stop_tokens"]))
    return Problem("Made_0_total", asked, row)


def judged(language: str, answer: str, style: str = "chat") -> Verdict:
    try:
        verdict = sandbox.run(task(language).program(problem(language, style), answer))
    except SandboxError as error:
        pytest.skip(str(error))
    if verdict.status == "missing":
        pytest.skip(f"{language}: {verdict.stderr}")
    return verdict


@pytest.mark.parametrize(("language", "answer"), RIGHT)
def test_right_answers_pass(language: str, answer: str) -> None:
    verdict = judged(language, answer)
    assert verdict.status == "passed", verdict.stderr


@pytest.mark.parametrize("language", LANGUAGES)
def test_ends_of_lines_do_not_matter(language: str) -> None:
    row = problem(language).row
    for _, _, answer in sections(language):
        plain, *others = (
            stitch(task(language).language, row["prompt"], answer.replace("\n", end), row["tests"])
            for end in ("\n", "\r\n", "\r")
        )
        assert others == [plain, plain]


@pytest.mark.parametrize("language", LANGUAGES)
def test_wrong_answers_fail_by_the_tests(language: str) -> None:
    verdict = judged(language, section(language, "wrong")[1])
    assert verdict.status == "failed"
    assert "the compiler ended" not in verdict.stderr


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_does_not_compile_fails_with_the_compilers_words(language: str) -> None:
    said, answer = section(language, "broken")
    verdict = judged(language, answer)
    assert verdict.status == "failed"
    assert said in verdict.stderr


@pytest.mark.parametrize("language", [name for name in LANGUAGES if name not in SLOW])
@pytest.mark.parametrize(
    "answer", ["", "I am sorry, I cannot help with that.", "```\n```", "```", "```{language}\n}}}}\n"]
)
def test_no_answer_fails(language: str, answer: str) -> None:
    assert judged(language, answer.format(language=language) if "{" in answer else answer).status == "failed"


BODIES = {
    "cpp": "    for (long n : numbers) {\n        extra += n;\n    }\n    return extra;",
    "java": "        for (long n : numbers) {\n            extra += n;\n        }\n        return extra;",
    "js": "  return numbers.reduce((a, b) => a + b, extra);\n}\n",
    "ts": "  return numbers.reduce((a, b) => a + b, extra);\n}\n",
    "php": "    return array_sum($numbers) + $extra;\n}\n",
    "bash": "    echo $(( $(printf '%s + ' $1) $2 ))",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_completions_go_on_behind_the_prompt(language: str) -> None:
    assert judged(language, BODIES[language], "completion").passed


# --- data ------------------------------------------------------------------------------------------------------------


FILE = "multipl_e/humaneval-sh.jsonl.xz"


def test_problems_of_both_styles(tmp_path: Path) -> None:
    (tmp_path / "humaneval").mkdir()  # by which a folder of evaluation data is known
    write_rows(tmp_path, FILE, [dict(problem("bash").row)])
    (chat,), (completion,) = task("bash").problems(tmp_path, "chat"), task("bash").problems(tmp_path, "completion")
    assert chat.id == completion.id == "Made_0_total"
    assert isinstance(chat.prompt, Chat)
    assert "Bash function" in chat.prompt.user
    assert "```bash\n#!/bin/bash\n" in chat.prompt.user
    assert chat.prompt.user.endswith("total() {\n```")
    assert completion.prompt == Continue(section("bash", "prompt")[1], ("\n}",))


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_data(language: str) -> None:
    """All problems are read, and answers of ours to some of them are judged right by the data's own tests."""
    styles: tuple[Style, ...] = ("chat", "completion")
    for style in styles:
        try:
            problems = {problem.id: problem for problem in task(language).problems(None, style)}
        except DataError as error:
            pytest.skip(str(error))
        for kind, name, answer in sections(language):
            if kind == "of the data" and (style == "chat" or "```" not in answer):
                verdict = sandbox.run(task(language).program(problems[name], answer.rstrip("\n")))
                if verdict.status == "missing":
                    pytest.skip(f"{language}: {verdict.stderr}")
                assert verdict.passed, f"{name}: {verdict}"
                assert not sandbox.run(task(language).program(problems[name], "")).passed


def test_there_are_no_prompts_of_style_fill(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompts of style 'fill'"):
        task("bash").problems(tmp_path, "fill")


def test_another_version_is_refused_unless_listed(tmp_path: Path) -> None:
    (tmp_path / "humaneval").mkdir()  # by which a folder of evaluation data is known
    write_rows(tmp_path, FILE, [dict(problem("bash").row)])
    (tmp_path / SUMS).unlink()
    with pytest.raises(DataError, match=r"humaneval-sh\.jsonl\.xz is not the expected version"):
        task("bash").problems(tmp_path, "chat")
