"""One logger for the whole package. Importing this changes nothing; a program that wants to see it calls `configure`.

Logs go to stderr, so that what a command prints on stdout can be piped.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

NAME = "openmercury"
LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}


def get_logger() -> logging.Logger:
    """The package's logger; silent below WARNING until `configure` is called, as in any library."""
    return logging.getLogger(NAME)


def level(verbosity: int) -> int:
    """Logging level for a count of -v flags: -1 errors, 0 warnings, 1 information, 2 everything; clamped outside."""
    return LEVELS[max(min(LEVELS), min(max(LEVELS), verbosity))]


def configure(verbosity: int = 0, *, stream: TextIO | None = None, rich: bool | None = None) -> logging.Logger:
    """Show the package's logs on `stream` (None: stderr); a second call replaces the first.

    `rich` draws levels and times in colour; None does so where the stream is a terminal.
    """
    stream = sys.stderr if stream is None else stream
    rich = stream.isatty() if rich is None else rich
    logger = get_logger()
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(_rich_handler(stream) if rich else _plain_handler(stream))
    logger.setLevel(level(verbosity))
    logger.propagate = False
    return logger


def _plain_handler(stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    return handler


def _rich_handler(stream: TextIO) -> logging.Handler:
    from rich.console import Console  # costs tens of milliseconds, so only where it is used
    from rich.logging import RichHandler

    return RichHandler(console=Console(file=stream), show_path=False, markup=False, log_time_format="%H:%M:%S")
