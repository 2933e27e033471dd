"""A sandbox to judge in, or the test is skipped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from openmercury.errors import SandboxError
from openmercury.eval.sandbox import run_python, usable_backend
from openmercury.eval.tasks.base import Program

Judge = Callable[[Program], str]


@pytest.fixture
def judge() -> Judge:
    """The status of a program's verdict."""
    try:
        usable_backend()
    except SandboxError as error:
        pytest.skip(str(error))
    return lambda program: run_python(program.source, timeout=program.timeout, memory_bytes=program.memory_bytes).status
