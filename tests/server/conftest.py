"""One server for all tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.made import Served, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
