"""The pictures of docs/playground.md: `python -m tests.server.playground.shoot URL FOLDER`, with a server at URL."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PATIENCE = 300_000  # ms: a 0.5B model on a small CPU
DONE = ".answer[aria-busy=false]"


def chat(page: Page, out: Path) -> None:
    """An answer half way through its steps."""
    page.click("#chat-examples button >> nth=1")
    page.wait_for_selector(DONE)
    slider = page.locator(".player input")
    slider.fill(str(int(slider.get_attribute("max") or 0) * 2 // 5))
    page.locator("#chat .scroll").evaluate("e => e.scrollTop = 0")
    page.screenshot(path=out)


def race(page: Page, out: Path) -> None:
    """A race in turn, on the clock's way."""
    page.click("#tab-race")
    page.get_by_text("in turn").click()
    page.click("#race-send")
    page.wait_for_selector("#race-verdict:visible")
    slider = page.locator("#race-player input")
    slider.fill(str(int(slider.get_attribute("max") or 0) // 4))
    page.locator("#race .scroll").evaluate("e => e.scrollTop = 0")
    page.screenshot(path=out)


def main(url: str, folder: Path) -> None:
    """Write them: the chat in the light theme, the race in the dark one."""
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            page.set_default_timeout(PATIENCE)
            page.goto(url)
            page.wait_for_selector("#model:enabled")
            page.fill("#max-tokens", "160" if scheme == "light" else "256")
            (chat if scheme == "light" else race)(page, folder / f"playground-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
