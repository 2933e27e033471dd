"""Every answer that is an error has OpenAI's shape, whatever went wrong: {"error": {message, type, param, code}}."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from openmercury.errors import (
    ConfigError,
    ContextOverflowError,
    EngineStoppedError,
    InputError,
    OpenMercuryError,
    QueueFullError,
    UnsupportedError,
)

SHOWN_CHARACTERS = 80
SUBJECT = re.compile("^(Input|List|String|Dictionary|Value) ")  # of a message of pydantic: here it is the parameter
LABEL = re.compile(r"str|int|float|bool|(list|dict)\[.*|constrained-.*|function-.*")


class ErrorFacts(BaseModel):
    """What went wrong: in words, by kind, and at which parameter."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The shape of every error."""

    error: ErrorFacts


class ApiError(Exception):
    """An error with its place on the wire; `headers` go with it (Retry-After)."""

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.type, self.code, self.param = status, message, type, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def refused(param: str, why: str, code: str | None = "invalid_value") -> ApiError:
    """400 for one parameter by name."""
    return ApiError(400, f"{param} {why}", code=code, param=param)


def overloaded(message: str, retry_after: float = 1.0) -> ApiError:
    """503 with Retry-After in seconds."""
    return ApiError(
        503, message, "server_error", "overloaded", headers={"retry-after": str(max(1, round(retry_after)))}
    )


def of(error: OpenMercuryError) -> ApiError:
    """The place on the wire of an error of ours."""
    message = str(error)
    if isinstance(error, ContextOverflowError):
        return ApiError(400, message, code="context_length_exceeded", param="messages")
    if isinstance(error, QueueFullError):
        return overloaded(message)
    if isinstance(error, EngineStoppedError):
        return overloaded(message, retry_after=5)
    if isinstance(error, (InputError, UnsupportedError, ConfigError)):
        return ApiError(400, message)
    return ApiError(500, message, "server_error")


def respond(error: ApiError) -> Response:
    """The response of an error."""
    # As ASCII, because a message may quote half of a surrogate pair, which UTF-8 cannot carry.
    return Response(json.dumps(error.body), error.status, error.headers, "application/json")


def install(app: FastAPI) -> None:
    """Answer every exception in that shape."""

    @app.exception_handler(ApiError)
    async def ours(_: Request, error: ApiError) -> Response:
        return respond(error)

    @app.exception_handler(OpenMercuryError)
    async def package(_: Request, error: OpenMercuryError) -> Response:
        return respond(of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return respond(explained(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return respond(_of_http(request, error))


def explained(found: Sequence[Mapping[str, Any]]) -> ApiError:
    """400 for what validation found; the first problem is told, by the name of its parameter."""
    first = found[0]
    where = _names(first)
    param = ".".join(where) or None
    match first["type"]:
        case "missing" if param is None:
            return ApiError(400, "the request has no JSON body: send one, with Content-Type application/json")
        case "missing":
            return ApiError(400, f"{param} is missing", code="missing_required_parameter", param=param)
        case "extra_forbidden":
            return ApiError(400, f"{param} is not a parameter here", code="unknown_parameter", param=param)
        case "json_invalid":
            return ApiError(400, f"the body is no valid JSON: {first.get('ctx', {}).get('error', first['msg'])}")
        case "value_error":
            return complaint(str(first["ctx"]["error"]), param)
    kinds = dict.fromkeys(SUBJECT.sub("", details["msg"]) for details in found if _names(details) == where)
    told = f"{param or 'the body'} {' or '.join(kinds)}, got {_shown(first.get('input'))}"
    return ApiError(400, told, code="invalid_value", param=param)


def _names(details: Mapping[str, Any]) -> list[str]:
    """Names that were sent, without the labels of union members behind them, such as "str" or "list[TextPart]"."""
    inside = [str(part) for part in details["loc"] if part not in ("body", "query", "path")]
    return list(itertools.takewhile(lambda part: not LABEL.fullmatch(part), inside))


def complaint(told: str, param: str | None = None) -> ApiError:
    """400 in words of ours, which begin with the parameter's name."""
    return ApiError(400, told, code="invalid_value", param=param or told.split(maxsplit=1)[0])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def _of_http(request: Request, error: HTTPException) -> ApiError:
    path = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return ApiError(404, f"{path} does not exist: /openapi.json lists what does", code="not_found")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return ApiError(405, f"{path} is not allowed: use {allowed or 'another method'}", headers=error.headers)
    if error.status_code == 400:
        return ApiError(400, "the body cannot be read as JSON: send UTF-8, not nested too deeply")
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    return ApiError(error.status_code, str(error.detail), kind, headers=error.headers)
