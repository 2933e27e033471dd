"""The playground: one page of plain HTML, CSS and ES modules, served from this folder as it stands.

No build step and no request to any other origin: the Content-Security-Policy refuses both inline code and foreign
addresses, and Trusted Types refuse any text that would be read as markup.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request, Response

FOLDER = Path(__file__).parent
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",  # asks each time whether the file has changed; ETag answers with 304
}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def page(request: Request) -> Response:
    """The page itself."""
    return asset(request, "index.html")


@router.api_route("/playground/{file}", methods=["GET", "HEAD"])
def asset(request: Request, file: str) -> Response:
    """One file of the page; 404 for any name that is not in the folder, so that no path can leave it."""
    if file not in FILES:
        return Response("There is no such file.\n", 404, HEADERS, "text/plain; charset=utf-8")
    body = FILES[file].read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = HEADERS | {"ETag": tag}
    if tag in (name.strip().removeprefix("W/") for name in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=TYPES[FILES[file].suffix])
