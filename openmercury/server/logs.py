"""One line a request on stderr: facts, never the text of prompts or answers."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Literal, TextIO

from openmercury.log import get_logger


class Lines(logging.Formatter):
    """JSON objects, or text with `key=value` behind the message."""

    def __init__(self, form: Literal["text", "json"]) -> None:
        super().__init__()
        self._json = form == "json"

    def format(self, record: logging.LogRecord) -> str:
        """One line; a trace of a bug goes into it, too."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        facts: dict[str, Any] = getattr(record, "facts", {})
        trace = {"trace": self.formatException(record.exc_info)} if record.exc_info else {}
        if self._json:
            told = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage(), **facts, **trace}
            return json.dumps(told)
        words = [f"{name}={value}" for name, value in facts.items() if value is not None]
        return " ".join([moment, record.levelname, record.getMessage(), *words, *trace.values()])


def configure(form: Literal["text", "json"], stream: TextIO | None = None) -> None:
    """Show the server's log, and the warnings of the libraries below it."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(Lines(form))
    libraries = (logging.getLogger(name) for name in ("uvicorn", "opentelemetry"))
    for logger, level in ((get_logger(), logging.INFO), *((each, logging.WARNING) for each in libraries)):
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(level)
