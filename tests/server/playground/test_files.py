"""How the page's files are served, and what they may not hold."""

from __future__ import annotations

import http.client
import re
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi")

from openmercury.server.playground import FILES, FOLDER


def get(url: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "kind", "file"),
    [
        ("/", "text/html; charset=utf-8", "index.html"),
        ("/playground/style.css", "text/css; charset=utf-8", "style.css"),
        ("/playground/main.js", "text/javascript; charset=utf-8", "main.js"),
        ("/playground/icon.svg", "image/svg+xml", "icon.svg"),
    ],
)
def test_a_file_is_served_with_type_policy_and_tag(stub: Any, path: str, kind: str, file: str) -> None:
    status, headers, body = get(stub.url, path)
    assert (status, headers["content-type"], body) == (200, kind, (FOLDER / file).read_bytes())
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"

    status, again, body = get(stub.url, path, **{"If-None-Match": f'"old", {headers["etag"]}'})
    assert (status, body, again["etag"]) == (304, b"", headers["etag"])


@pytest.mark.parametrize("name", ["__init__.py", "..%2fapp.py", "%2e%2e/app.py", "nothing.js", "__pycache__"])
def test_other_names_are_not_found(stub: Any, name: str) -> None:
    assert get(stub.url, f"/playground/{name}")[0] == 404


def test_the_page_has_no_inline_code_and_no_foreign_address() -> None:
    for name, path in FILES.items():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
    page = FILES["index.html"].read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


def test_every_part_is_used_and_there() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in FILES.values())
    named = set(re.findall(r'(?:playground/|"\./)([\w.]+\.(?:js|css|svg))', text))
    assert named | {"index.html"} == set(FILES)
