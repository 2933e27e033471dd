"""The page against the real application and a tiny random model: both sides mean the same by the wire."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")

from tests.server import made
from tests.server.playground.conftest import until

Visit = Callable[..., Any]
DONE = ".answer[aria-busy=false]"
CLIPBOARD = ["clipboard-read", "clipboard-write"]


@pytest.fixture(scope="module")
def served() -> Iterator[made.Served]:
    with made.serving(snapshot_seconds=0.0) as server:
        yield server


def post(served: made.Served, path: str, **body: Any) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{served.url}{path}", json.dumps({"model": made.MODEL, **body}).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def ask(page: Any, mode: str, text: str, tokens: int) -> None:
    page.locator("#modes").get_by_text(mode, exact=True).click()
    page.fill("#max-tokens", str(tokens))
    page.fill("#chat-input", text)
    page.keyboard.press("Control+Enter")


def copied(page: Any) -> str:
    page.get_by_role("button", name="Copy answer").last.click()
    until(page, "document.getElementById('spoken').textContent === 'Copied'")
    return str(page.evaluate("navigator.clipboard.readText()"))


@pytest.mark.parametrize("mode", ["diffusion", "verified", "ar", "auto"])
def test_the_page_shows_the_answer_and_figures_of_the_api(served: made.Served, visit: Visit, mode: str) -> None:
    page = visit(f"{served.url}/", permissions=CLIPBOARD)
    assert page.locator("#model option").all_inner_texts() == [made.MODEL]  # without its aliases
    ask(page, mode, "hi", 40)
    page.wait_for_selector(DONE)

    message = [{"role": "user", "content": "hi"}]
    answer = post(served, "/v1/chat/completions", messages=message, mode=mode, max_tokens=40, temperature=0)
    assert copied(page).replace("\r\n", "\n") == answer["choices"][0]["message"]["content"].replace("\r\n", "\n")
    usage = answer["usage"]
    assert page.inner_text("[data-figure=tokens]") == str(usage["completion_tokens"])
    if mode != "auto":  # it drafts by the load, which differs from run to run
        assert page.inner_text("[data-figure=forwards]") == str(usage["forwards"])
        assert page.inner_text("[data-figure=tpf]") == f"{usage['tokens_per_forward']:.2f}"
    if answer["choices"][0]["finish_reason"] == "length":
        assert page.inner_text(".status") == "cut off by max tokens"


def test_masks_resolve_step_by_step(served: made.Served, visit: Visit) -> None:
    page = visit(f"{served.url}/")
    ask(page, "diffusion", "hi", 24)
    page.wait_for_selector(DONE)
    slider = page.locator(".player input")
    masks, given = [], ""
    for step in range(int(slider.get_attribute("max")) + 1):
        slider.fill(str(step))
        masks.append(page.locator(".canvas .mask").count())
        settled = page.evaluate(
            "[...document.querySelectorAll('.canvas *')].flatMap(e => [...e.childNodes]).filter(n => n.nodeType === 3 "
            "&& !n.parentElement.matches('.mask, .draft')).map(n => n.textContent).join('')"
        )
        assert len(settled) >= len(given.strip())
        given = settled
    assert max(masks) > 0
    assert masks[-1] == 0


def test_stop_frees_the_engine(served: made.Served, visit: Visit) -> None:
    page = visit(f"{served.url}/")
    ask(page, "ar", "hi", 400)
    page.wait_for_selector(".answer[aria-busy=true]")
    page.keyboard.press("Escape")
    page.wait_for_selector(DONE)
    assert served.pages_free()


def test_fill_and_race(served: made.Served, visit: Visit) -> None:
    page = visit(f"{served.url}/")
    page.fill("#max-tokens", "24")
    page.click("#tab-fill")
    page.click("#fill-send")
    page.wait_for_selector(f"#fill {DONE}")
    assert page.inner_text("#fill [data-figure=forwards]") != "–"
    page.click("#tab-race")
    page.fill("#race-input", "hi")
    page.click("#race-send")
    page.wait_for_selector("#race-verdict:visible")
    assert " forwards against " in page.inner_text("#race-verdict")


def test_the_api_refuses_in_one_sentence(served: made.Served, visit: Visit) -> None:
    page = visit(f"{served.url}/", expected=("Failed to load resource",))
    ask(page, "diffusion", "hi " * 600, 24)
    page.wait_for_selector(".note:visible")
    note = page.inner_text(".note")
    assert "context" in note
    assert "\n" not in note
