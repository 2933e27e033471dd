"""Where generated code can be run, for the tests that do."""

from __future__ import annotations

import pytest

from openmercury.errors import SandboxError
from openmercury.eval.sandbox import BACKENDS, Backend, probe, usable_backend


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    refusal = probe(request.param)
    if refusal is not None:
        pytest.skip(f"the sandbox's {request.param} backend does not work here: {refusal}")
    return request.param


@pytest.fixture
def anywhere() -> None:
    try:
        usable_backend()
    except SandboxError as error:
        pytest.skip(str(error))
