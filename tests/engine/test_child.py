"""What the engine's process tells, and when. That it answers as one beside the server: tests/server/test_remote."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from openmercury.engine import child
from openmercury.engine.engine import Counts
from openmercury.engine.params import SamplingParams
from openmercury.engine.request import Request
from openmercury.errors import RequestFailedError


class Engine:
    """Busy until `last`; counts nothing."""

    busy = True

    def counts(self) -> Counts:
        return Counts(1, 0, 8, 8)


class Wire:
    def __init__(self) -> None:
        self.sent: list[list[int]] = []

    def tell_numbers(self, numbers: list[int]) -> None:
        self.sent.append(list(numbers))

    def tell(self, message: dict[str, Any]) -> None:
        self.sent.append([-1, message["failed"][0]])


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Wire, list[float]]:
    """A child that neither receives nor takes signals, its wire, and the clock."""
    clock = [100.0]
    monkeypatch.setattr(child.signal, "signal", lambda *_: None)
    monkeypatch.setattr(child.threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(child.time, "monotonic", lambda: clock[0])
    ours, _ = socket.socketpair()
    made, wire = child.Child(ours), Wire()
    made.wire = wire  # type: ignore[assignment]
    return made, wire, clock


def test_progress_is_told_together(telling: tuple[Any, Wire, list[float]]) -> None:
    """First tokens and ends at once, in between once in TELL_SECONDS, with nothing lost."""
    made, wire, clock = telling
    engine, requests = Engine(), [Request([1], SamplingParams(), frozenset(), 1) for _ in range(2)]
    for number, request in enumerate(requests):
        made._live[number], made._told[request] = request, child._Told(number, len(request.tokens))
    for step in range(10):
        for request in requests:
            request.tokens.append(step)
        if step == 7:
            requests[0].finish_reason = "stop"
        made._tell(engine, requests if step < 8 else requests[1:])
        clock[0] += child.TELL_SECONDS / 4
    engine.busy = False
    made._tell(engine, [])
    told: dict[int, list[int]] = {0: [], 1: []}
    for numbers in wire.sent:
        at = 4
        while at < len(numbers):
            number, *_, gained, drafts = numbers[at : at + child.FIELDS]
            told[number] += numbers[at + child.FIELDS : at + child.FIELDS + gained]
            at += child.FIELDS + gained + drafts
    assert told == {0: list(range(8)), 1: list(range(10))}
    assert [len(numbers) > 4 for numbers in wire.sent] == [True] * 5  # steps 0, 4, 7 (an end), 8, and the last
    assert wire.sent[-1][0] == 0


def test_what_fails_keeps_its_tokens(telling: tuple[Any, Wire, list[float]]) -> None:
    """They are told before the error is, which ends what is read of it."""
    made, wire, _ = telling
    engine, request = Engine(), Request([1], SamplingParams(), frozenset(), 1)
    made._live[7], made._told[request] = request, child._Told(7, 1)
    for token in (5, 6):
        request.tokens.append(token)
        made._tell(engine, [request])
    request.fail(RequestFailedError("no number"))
    made._tell(engine, [request])
    (first, second, third) = wire.sent
    assert [numbers[4 + child.FIELDS :] for numbers in (first, second)] == [[5], [6]]
    assert third == [-1, 7]
