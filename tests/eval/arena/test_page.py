"""The page's server: blind until the vote, closed to other sites, and safe with whatever a model writes."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from openmercury.eval.arena import page as pages
from openmercury.eval.arena.page import PAGE, Page
from openmercury.eval.tasks.base import Fill, Prompt
from tests.eval.arena.fakes import arena

EVIL = "</pre><script>alert(1)</script>"


def serving(folder: Path, prompts: list[Prompt] | None, **given: Any) -> Iterator[Page]:
    with Page(arena(folder, **given), None if prompts is None else iter(prompts), 0) as page:
        thread = threading.Thread(target=page.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield page
        page.shutdown()
        thread.join()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    yield from serving(tmp_path, [Fill(EVIL, ")"), Fill("unable", "")], marks=(EVIL, "right"))


def ask(page: Page, path: str, body: object = None, **changed: str | None) -> tuple[int, Any, Mapping[str, str]]:
    """(status, JSON or text, headers); `changed` headers, None leaves one out."""
    host = f"127.0.0.1:{page.server_address[1]}"
    headers = {"Host": host} if body is None else {"Host": host, "Origin": f"http://{host}"}
    data = None if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    if data is not None:
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    names = {name: name.replace("_", "-").title() for name in changed}
    headers |= {names[name]: value for name, value in changed.items() if value is not None}
    for name, value in changed.items():
        if value is None:
            headers.pop(names[name])
    connection = http.client.HTTPConnection("127.0.0.1", page.server_address[1], timeout=5)
    connection.putrequest("GET" if data is None else "POST", path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(data)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    told = json.loads(text) if response.headers["Content-Type"] == "application/json" else text
    return response.status, told, response.headers


def test_a_match_is_blind_and_a_vote_tells(page: Page) -> None:
    status, match, _ = ask(page, "/match", {})
    assert status == 200
    assert set(match) == {"id", "prefix", "suffix", "answers", "same"}  # no name, no time
    assert sorted(match["answers"]) == sorted([EVIL, "right"])
    status, told, _ = ask(page, "/vote", {"id": match["id"], "outcome": "second"})
    assert status == 200
    assert [one["name"] for one in told] == ["a" if text == EVIL else "b" for text in match["answers"]]
    assert {one["name"]: one["seconds"] for one in told} == {"a": 1.0, "b": 0.5}
    [vote] = page.arena.votes.all()
    assert vote.winner == told[1]["name"]
    assert ask(page, "/scores")[1]["rows"][0][0] == vote.winner


def test_a_match_has_one_vote(page: Page) -> None:
    match = ask(page, "/match", {})[1]["id"]
    assert ask(page, "/vote", {"id": match, "outcome": "same"})[0] == 400
    assert ask(page, "/vote", {"id": match, "outcome": "tie"})[0] == 200
    assert ask(page, "/vote", {"id": match, "outcome": "first"})[0] == 404
    assert ask(page, "/vote", {"id": ["x"], "outcome": "first"})[0] == 404
    assert [vote.outcome for vote in page.arena.votes.all()] == ["tie"]


def test_own_code_and_the_end_of_prompts(page: Page) -> None:
    match = ask(page, "/match", {"prefix": "def f", "suffix": None})[1]
    assert (match["prefix"], match["suffix"]) == ("def f", "")
    assert ask(page, "/match", {"prefix": "", "suffix": ""})[0] == 400
    assert ask(page, "/match", {"prefix": 3})[0] == 400
    assert ask(page, "/match", {"prefix": "x", "suffix": "\ud800"})[0] == 400
    assert ask(page, "/match", {})[0] == 200
    status, told, _ = ask(page, "/match", {})
    assert (status, "too long" in told["error"]) == (503, True)
    status, told, _ = ask(page, "/match", {})
    assert (status, told["error"]) == (410, "all prompts have been asked: paste your own code, or start again")


def test_old_matches_are_forgotten(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "OPEN_MATCHES", 1)
    first, second = (ask(page, "/match", {"prefix": "x"})[1]["id"] for _ in range(2))
    assert ask(page, "/vote", {"id": first, "outcome": "tie"})[0] == 404
    assert ask(page, "/vote", {"id": second, "outcome": "tie"})[0] == 200


def test_equal_answers_are_a_tie_at_once(tmp_path: Path) -> None:
    for page in serving(tmp_path, None, marks=("x", "x")):
        assert ask(page, "/match", {})[0] == 400  # nothing to ask
        assert ask(page, "/match", {"prefix": "x"})[1]["same"]
        assert [vote.outcome for vote in page.arena.votes.all()] == ["same"]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": None}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"host": "[::1", "origin": "http://[::1"}, 403),
        ({"host": None}, 403),
        ({"content_type": "text/plain"}, 415),
        ({"content_length": None}, 411),
        ({"content_length": str(1 << 30)}, 413),
        ({"content_length": "9" * 5000}, 413),
        ({"content_length": "-5"}, 411),
    ],
)
def test_other_sites_cannot_vote(changed: dict[str, str | None], status: int, page: Page) -> None:
    match = ask(page, "/match", {})[1]["id"]
    body = {"id": match, "outcome": "first"}
    assert ask(page, "/vote", body, **changed)[0] == status
    assert page.arena.votes.all() == []
    assert ask(page, "/vote", body)[0] == 200


@pytest.mark.parametrize("body", ["{", "[]", "1", '{"id": {}}', '{"outcome": []}', "[" * 100_000])
def test_bodies_that_say_nothing_are_refused(body: str, page: Page) -> None:
    assert ask(page, "/vote", body)[0] == 400


def test_reading_needs_a_name_of_this_machine(page: Page) -> None:
    for path in ("/", "/scores"):
        assert ask(page, path, host="evil.example")[0] == 403
        assert ask(page, path, host="localhost:9")[0] == 200  # through a tunnel the port is another
    assert ask(page, "/page.html")[0] == 404
    assert ask(page, "/elsewhere", {})[0] == 404


def test_the_page_asks_no_other_source_and_makes_no_html_of_texts(page: Page) -> None:
    status, html, headers = ask(page, "/")
    assert status == 200
    [nonce] = set(re.findall(r'nonce="([^"]+)"', html))
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'nonce-{nonce}'" in policy
    assert ask(page, "/")[2]["Content-Security-Policy"] != policy
    assert "{{" not in html
    assert EVIL not in html
    source = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|\son\w+=|style=", source)


def test_the_page_can_be_used_without_a_mouse_or_eyes(page: Page) -> None:
    html = ask(page, "/")[1]
    assert '<html lang="en">' in html
    assert 'role="status" aria-live="polite"' in html
    assert "color-scheme: light dark" in html
    assert sorted(re.findall(r'aria-keyshortcuts="(.)"', html)) == ["1", "2", "b", "s", "t"]
    labelled = re.findall(r'<label for="(\w+)"', html)
    assert labelled == re.findall(r'<textarea id="(\w+)"', html)
    scrolling = re.findall(r"<pre[^>]*>", html)
    assert len(scrolling) == 3
    assert all('tabindex="0"' in one and "aria-labelledby" in one for one in scrolling)
