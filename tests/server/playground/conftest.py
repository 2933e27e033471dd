"""A server on a free port, and a headless Chromium that reports whatever goes wrong on a page."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def until(page: Any, condition: str, seconds: float = 15) -> None:
    """Wait until a JavaScript condition holds (Playwright's own wait needs `eval`, which the page's policy forbids)."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"this never came true: {condition}"
        page.wait_for_timeout(20)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The URL of `app`, served from a thread over a real socket."""
    uvicorn = pytest.importorskip("uvicorn")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def stub() -> Iterator[Any]:
    """A `Stub`, served; its `url` is where."""
    pytest.importorskip("fastapi")
    from tests.server.playground.stub import Stub

    made = Stub()
    with serving(made.app) as made.url:
        yield made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser: the machine's Chromium, else the one of `playwright install chromium`.

    Not for the session: Playwright's event loop runs in this thread, where the `asyncio.run` of other tests would fail.
    """
    api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium here: install it, or run `playwright install chromium` ({error.message[:80]})")
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """`visit(url, **context)` opens a page; the test fails if the page logs, throws or asks another origin."""
    wrong: list[str] = []
    contexts = []

    def open_page(url: str, *, expected: tuple[str, ...] = (), **context: Any) -> Any:
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 800}} | context))
        page = contexts[-1].new_page()

        def logged(message: Any) -> None:
            if not any(part in message.text for part in expected):
                wrong.append(f"{message.type}: {message.text}")

        page.on("console", logged)
        page.on("pageerror", lambda error: wrong.append(f"threw {error}"))
        page.on("request", lambda request: request.url.startswith(url) or wrong.append(f"asked {request.url}"))
        page.goto(url)
        until(page, "document.getElementById('model').options[0].text !== 'loading'")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
