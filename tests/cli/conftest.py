"""With a sandbox, or where there is none."""

from __future__ import annotations

import pytest

from openmercury.errors import SandboxError
from openmercury.eval import sandbox


@pytest.fixture
def usable() -> None:
    try:
        sandbox.usable_backend()
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise SandboxError("no sandbox here: install bubblewrap")

    monkeypatch.setattr(sandbox, "usable_backend", refuse)
