"""The page in a headless Chromium, against a server that speaks the wire by heart."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.playground.conftest import until
from tests.server.playground.stub import ANSWER, EVIL

Visit = Callable[..., Any]
DONE = ".answer[aria-busy=false]"
REFUSED = ("Failed to load resource",)  # what Chromium itself logs about a refused request


def send(page: Any, text: str) -> None:
    page.fill("#chat-input", text)
    page.keyboard.press("Control+Enter")


def figure(page: Any, name: str, within: str = "") -> str:
    return str(page.inner_text(f"{within} [data-figure={name}]"))


def test_a_diffusing_answer_resolves_in_place(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    send(page, "Merge two lists.")
    page.wait_for_selector(".canvas .mask")
    page.wait_for_selector(".canvas .draft")
    until(page, "document.querySelector('[data-figure=tpf]').textContent !== '–'")
    page.wait_for_selector(DONE)

    assert page.locator(".canvas .mask, .canvas .draft, .canvas .fresh").count() == 0
    assert page.inner_text(".canvas code").strip() in ANSWER
    assert page.inner_text(".canvas .prose .t-strong") == "linear time"
    assert page.locator(".canvas .t-keyword", has_text="while").count() == 1
    assert float(figure(page, "tpf")) == pytest.approx(157 / 40, abs=0.01)
    assert (figure(page, "forwards"), figure(page, "tokens")) == ("40", "157")
    assert float(figure(page, "speed")) > 10
    asked = stub.asked[-1]
    assert (asked["mode"], asked["diffusing"], asked["stream"], asked["model"]) == (
        "diffusion",
        True,
        True,
        "openmercury-nano",
    )
    assert "finished, 157 tokens" in page.inner_text("#spoken")


def test_the_scrubber_replays_the_steps(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    stub.held = True
    send(page, "Merge two lists.")
    page.wait_for_selector(".canvas .mask")
    assert page.locator(".player button").is_disabled()
    stub.held = False
    page.wait_for_selector(DONE)
    slider = page.locator(".player input[type=range]")
    last = int(slider.get_attribute("max"))

    slider.focus()
    page.keyboard.press("Home")
    assert page.locator(".canvas .mask").count() == 48
    assert page.locator(".canvas .fresh").count() == 0
    slider.fill("4")
    assert page.locator(".canvas .fresh").count() > 0
    assert slider.get_attribute("aria-valuetext").startswith(f"step 5 of {last + 1}, ")

    page.clock.install()
    page.clock.pause_at(time.time() + 60)  # from here on the page's time goes on when told to
    page.click(".player button")
    assert page.inner_text(".player button") == "Pause"
    page.clock.run_for(150)
    here = slider.input_value()
    assert 4 < int(here) < last
    page.click(".player button")
    page.clock.run_for(60_000)
    assert slider.input_value() == here
    page.click(".player button")
    page.clock.run_for(60_000)
    assert slider.input_value() == str(last)
    assert page.inner_text(".player button") == "Replay"
    assert page.locator(".canvas .mask").count() == 0


def test_esc_and_the_button_stop_and_abort_the_request(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    for stop in (lambda: page.keyboard.press("Escape"), lambda: page.click("#chat-send")):
        before = stub.aborted
        send(page, "slow")
        page.wait_for_selector(".answer[aria-busy=true] .mask")
        assert page.inner_text("#chat-send") == "Stop"
        stop()
        until(page, "document.getElementById('chat-send').textContent === 'Send'")
        assert page.locator(".answer").last.locator(".status").inner_text() == "stopped"
        assert page.locator(".mask:visible").count() == 2  # those of the legend
        deadline = time.monotonic() + 5
        while stub.aborted == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert stub.aborted == before + 1


def test_mode_and_settings_are_sent(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    page.fill("#threshold", "0.35")
    send(page, "one")
    page.wait_for_selector(DONE)
    assert stub.asked[-1]["threshold"] == 0.35

    page.locator("#modes").get_by_text("ar", exact=True).click()
    assert page.locator("#threshold").is_disabled()
    page.select_option("#model", "tiny")
    page.fill("#max-tokens", "77")
    page.locator("#temperature").fill("0.7")
    assert page.inner_text("#temperature-value") == "0.7"
    send(page, "two")
    page.wait_for_selector(f"{DONE} >> nth=1")
    asked = stub.asked[-1]
    assert (asked["mode"], asked["model"], asked["max_tokens"], asked["temperature"]) == ("ar", "tiny", 77, 0.7)
    assert "threshold" not in asked
    assert [message["role"] for message in asked["messages"]] == ["user", "assistant", "user"]
    assert asked["messages"][1]["content"] == ANSWER

    page.fill("#max-tokens", "0")
    count = len(stub.asked)
    send(page, "three")
    assert len(stub.asked) == count


def test_a_new_chat_forgets_the_old_one_even_while_it_is_written(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    page.locator("#modes").get_by_text("ar", exact=True).click()
    send(page, "slow")
    until(page, "document.querySelector('.canvas')?.textContent.length > 0")
    page.click("#new-chat")
    until(page, "document.getElementById('chat-send').textContent === 'Send'")
    assert page.locator("#chat-welcome").is_visible()
    send(page, "two")
    page.wait_for_selector(DONE)
    assert [message["content"] for message in stub.asked[-1]["messages"]] == ["two"]


def test_a_race_runs_both_and_one_clock_replays_them(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    page.click("#tab-race")
    assert not page.locator("#modes").is_visible()
    page.click("#race-send")
    page.wait_for_selector(".lane >> nth=0 >> .answer[aria-busy=true]")
    page.wait_for_selector(".lane >> nth=1 >> .answer[aria-busy=true]")
    page.wait_for_selector("#race-verdict:visible")
    assert page.inner_text("#race-verdict").startswith("diffusion was done after ")
    assert page.inner_text("#race-verdict").endswith("in 40 forwards against 157.")
    assert figure(page, "tpf", ".lane:first-child") == "1.00"
    assert {asked["mode"] for asked in stub.asked[-2:]} == {"ar", "diffusion"}

    page.locator("#race-player input").fill("20")
    left, right = (page.locator(".lane").nth(lane).locator(".canvas").inner_text() for lane in (0, 1))
    assert 0 < len(left) < len(ANSWER)
    assert left != right

    page.get_by_text("in turn").click()
    page.locator(".lane select").nth(1).select_option("verified")
    page.click("#race-send")
    page.wait_for_selector(".lane >> nth=0 >> .answer[aria-busy=true]")
    assert stub.asked[-1]["mode"] == "ar"
    page.wait_for_selector("#race-verdict:visible")
    assert [asked["mode"] for asked in stub.asked[-2:]] == ["ar", "verified"]


def test_fill_shows_the_gap_between_the_given_code(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    page.click("#tab-fill")
    page.click("#fill-send")
    page.wait_for_selector(f"#fill {DONE}")
    assert (
        page.inner_text("#fill .canvas code")
        == "def mean(values):\n    total = sum(values)\n    return total / len(values)\n"
    )
    assert page.locator("#fill .given").first.inner_text() == "def"
    asked = stub.asked[-1]
    assert (asked["prompt"], asked["suffix"]) == (
        "def mean(values):\n    total = ",
        "\n    return total / len(values)\n",
    )
    assert "stop" not in asked
    page.uncheck("#fill-short")
    page.get_by_role("button", name="Sum of squares").click()
    page.click("#fill-send")
    page.wait_for_selector(f"#fill {DONE}")
    assert stub.asked[-1]["stop"] == []
    assert page.input_value("#fill-language") == "javascript"


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("refuse", "Incorrect API key provided"),
        ("proxy", "The server answered with status 502: try again, or look at its log."),
        ("break", "The engine was closed."),
    ],
)
def test_an_error_is_one_sentence(stub: Any, visit: Visit, said: str, sentence: str) -> None:
    page = visit(stub.url, expected=REFUSED)
    send(page, said)
    page.wait_for_selector(".note:visible")
    assert page.inner_text(".note") == sentence
    assert page.inner_text(".answer .status") == "failed"
    assert page.input_value("#chat-input") == said  # nothing typed is lost
    send(page, "again")
    page.wait_for_selector(f"{DONE} >> nth=1")
    assert len(stub.asked[-1]["messages"]) == 1  # what failed is no part of the conversation


def test_a_server_that_is_gone_is_one_sentence(stub: Any, visit: Visit) -> None:
    page = visit(stub.url, expected=REFUSED)
    page.route("**/v1/chat/completions", lambda route: route.abort())
    send(page, "hello")
    page.wait_for_selector(".note:visible")
    assert page.inner_text(".note") == "The server cannot be reached: check that it is still running."


def test_markup_of_the_model_stays_text(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    send(page, "evil")
    page.wait_for_selector(DONE)
    assert page.inner_text(".canvas") == EVIL
    assert page.locator(".canvas img, .canvas script").count() == 0
    assert page.title() == "OpenMercury playground"


def test_the_key_is_sent_and_kept_for_the_tab_only(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    page.fill("#key", "sk-secret")
    page.keyboard.press("Tab")
    send(page, "one")
    page.wait_for_selector(DONE)
    assert stub.keys[-1] == "Bearer sk-secret"
    assert page.evaluate("[sessionStorage.getItem('key'), JSON.stringify(localStorage), document.cookie]") == [
        "sk-secret",
        "{}",
        "",
    ]
    page.reload()
    assert page.input_value("#key") == "sk-secret"


def test_a_server_that_wants_a_key_says_so_beside_the_field(stub: Any, visit: Visit) -> None:
    page = visit(stub.url, expected=REFUSED)
    refusal = '{"error": {"message": "Incorrect API key provided"}}'
    page.route("**/v1/models", lambda route: route.fulfill(status=401, content_type="application/json", body=refusal))
    page.reload()
    until(page, "document.getElementById('key-hint').textContent === 'Incorrect API key provided'")
    assert page.locator("#model").is_disabled()
    page.unroute("**/v1/models")
    page.fill("#key", "sk-right")
    page.keyboard.press("Tab")
    until(page, "document.getElementById('model').value === 'openmercury-nano'")
    assert page.inner_text("#key-hint") == "Kept until this tab is closed."


def test_tabs_go_by_arrow_keys(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    page.focus("#tab-chat")
    for key, tab in (
        ("ArrowRight", "fill"),
        ("End", "race"),
        ("ArrowRight", "chat"),
        ("ArrowLeft", "race"),
        ("Home", "chat"),
    ):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.id") == f"tab-{tab}"
        assert page.locator("[role=tabpanel]:visible").get_attribute("id") == tab
        assert page.locator("[role=tab][tabindex='0'], [role=tab]:not([tabindex])").count() == 1
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.slow
def test_a_screen_reader_hears_settled_text_once(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    page.evaluate("""() => {
        window.heard = [];
        const spoken = document.getElementById("spoken");
        const watch = new MutationObserver(() => window.heard.push(spoken.textContent));
        watch.observe(spoken, { childList: true, characterData: true, subtree: true });
    }""")
    page.locator("#modes").get_by_text("ar", exact=True).click()
    send(page, "slow")
    until(page, "window.heard.length >= 2")
    page.keyboard.press("Escape")
    page.wait_for_selector(DONE)
    heard = page.evaluate("window.heard")
    assert ANSWER.startswith("".join(heard[:2]))
    assert re.search(r" Answer stopped, \d+ tokens in [\d.]+ s\.$", heard[-1])
    assert page.get_attribute(".answer", "aria-busy") == "false"
    assert page.locator("[aria-live]").count() == 1


TOO_WIDE = """[...document.querySelectorAll("header *, .pane:not([hidden]) *")]
    .filter((e) => !e.closest("pre, .hidden") && e.getBoundingClientRect().right > innerWidth)
    .map((e) => e.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("tab", ["chat", "fill", "race"])
def test_it_fits_360_pixels(stub: Any, visit: Visit, tab: str) -> None:
    page = visit(stub.url, viewport={"width": 360, "height": 740}, reduced_motion="reduce")
    page.click(f"#tab-{tab}")
    page.locator(f"#{tab} button[type=submit]").scroll_into_view_if_needed()
    stub.held = True
    if tab == "chat":
        page.locator("#chat-examples button").first.click()
    else:
        page.click(f"#{tab}-send")
    page.wait_for_selector(f"#{tab} .answer[aria-busy=true]")
    stub.held = False
    until(page, f"document.getElementById('{tab}-send').textContent !== 'Stop'")
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert not page.locator("#settings").is_visible()
    page.click("#open-settings")
    assert page.locator("#settings").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#settings").is_visible()


def test_reduced_motion_stops_what_moves(stub: Any, visit: Visit) -> None:
    for motion, name in (("no-preference", "breathe"), ("reduce", "none")):
        page = visit(stub.url, reduced_motion=motion)
        send(page, "slow")
        page.wait_for_selector(".canvas .mask")
        assert page.evaluate("getComputedStyle(document.querySelector('.canvas .mask')).animationName") == name
        page.keyboard.press("Escape")


def test_the_theme_follows_the_system_until_it_is_chosen(stub: Any, visit: Visit) -> None:
    page = visit(stub.url, color_scheme="dark")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(paper)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(paper) == "rgb(255, 255, 255)" != dark
    page.get_by_role("button", name="Use the dark theme").click()
    assert page.evaluate(paper) == dark
    page.reload()
    assert page.evaluate(paper) == dark


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const linear = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const ground = (e) => !e ? "rgb(0, 0, 0)" : rgba(getComputedStyle(e).backgroundColor)[3] === 255
        ? getComputedStyle(e).backgroundColor : ground(e.parentElement);
    const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    return [...document.querySelectorAll("body *")]
        .filter((e) => hasText(e) && e.checkVisibility() && !e.closest(":disabled, .hidden, .given"))
        .map((e) => {
            const [x, y] = [getComputedStyle(e).color, ground(e)].map((colour) => light(rgba(colour)));
            return [e.className, e.textContent.slice(0, 20), (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05)];
        })
        .filter(([, , ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(stub: Any, visit: Visit, scheme: str) -> None:
    """WCAG 2 AA: 4.5 : 1 for text, drafts and colours of code included."""
    page = visit(stub.url, color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []
    send(page, "Merge two lists.")
    page.wait_for_selector(DONE)
    page.locator(".player input").fill("30")
    assert page.locator(".canvas .draft").count() > 0
    assert page.evaluate(CONTRAST) == []


def test_every_control_has_a_name(stub: Any, visit: Visit) -> None:
    page = visit(stub.url)
    send(page, "Merge two lists.")
    page.wait_for_selector(DONE)
    for tab in ("chat", "fill", "race"):
        page.click(f"#tab-{tab}")
        snapshot = page.locator("body").aria_snapshot()
        for role in ("button", "textbox", "combobox", "slider", "spinbutton", "radio", "checkbox", "tab"):
            for line in snapshot.splitlines():
                assert line.strip().rstrip(":") not in (f"- {role}", f"- {role} [disabled]"), (tab, line)
