"""`demo` end to end, with a model that is made up and a sandbox that is not."""

from __future__ import annotations

from typing import Any

import pytest

from openmercury.cli import demo, generate, main
from openmercury.eval import sandbox
from tests.eval.made import DemoLLM

PALINDROME = '''Here you are:

```python
def is_palindrome(s):
    """Say whether s reads the same backwards.

    >>> is_palindrome("A man, a plan, a canal: Panama")
    True
    >>> is_palindrome("no")
    False
    """
    kept = [c.lower() for c in s if c.isalnum()]
    return kept == kept[::-1]
```
'''


def install(monkeypatch: pytest.MonkeyPatch, llm: Any) -> Any:
    monkeypatch.setattr(generate, "load_llm", lambda *_: llm)
    return llm


def test_demo_runs_the_models_own_examples(
    usable: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, DemoLLM(PALINDROME))
    assert main.main(["demo"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fake: 3M parameters on cpu in float32, loaded in 0.1 s\n")
    assert demo.PROMPT in out
    assert '  ok    is_palindrome("A man, a plan, a canal: Panama") -> True\n' in out
    assert "  2 examples hold\n" in out
    assert "per forward" in out
    assert out.rstrip().endswith(demo.NEXT)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (PALINDROME.replace("True", "False"), "1 of 2 doctest examples gave another result"),
        (PALINDROME.replace("kept ==", "kept / 0, kept =="), "2 of 2 doctest examples gave another result"),
        (PALINDROME.replace(">>>", "..."), "there is no doctest example in the code"),
        (PALINDROME.replace("def ", "deaf "), "SyntaxError: invalid syntax"),
        ("I would rather not.", "SyntaxError"),
        (PALINDROME.replace("    kept =", "    while True: pass\n    kept ="), "timeout"),
    ],
)
def test_demo_fails_where_the_examples_do(
    answer: str, told: str, usable: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, DemoLLM(answer))
    monkeypatch.setattr(demo, "TIMEOUT_SECONDS", 1.0)
    assert main.main(["demo", "--mode", "verified"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: the model's code does not pass its own doctest: ")
    assert told in captured.err
    assert "per forward" in captured.out


def test_demo_without_sandbox_runs_nothing(
    no_sandbox: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, DemoLLM(PALINDROME))
    monkeypatch.setattr(sandbox, "run_python", lambda *_, **__: pytest.fail("ran the code"))
    assert main.main(["demo"]) == 0
    assert "The code was not run: no sandbox here" in capsys.readouterr().out
