"""The package's logger: silent until asked, on stderr, one handler however often it is set up."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from openmercury import log


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    logger = log.get_logger()
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def test_one_logger() -> None:
    assert log.get_logger() is logging.getLogger("openmercury")


@pytest.mark.parametrize(
    ("verbosity", "level"), [(-5, "ERROR"), (-1, "ERROR"), (0, "WARNING"), (1, "INFO"), (2, "DEBUG"), (9, "DEBUG")]
)
def test_level_follows_verbosity(verbosity: int, level: str) -> None:
    assert logging.getLevelName(log.configure(verbosity, stream=io.StringIO()).level) == level


def test_default_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure().warning("chose %s", "cpu")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("WARNING chose cpu\n")


@pytest.mark.parametrize("rich", [False, True])
def test_second_call_replaces_the_first(rich: bool) -> None:
    first, second = io.StringIO(), io.StringIO()
    log.configure(1, stream=first)
    log.configure(1, stream=second, rich=rich).info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1
