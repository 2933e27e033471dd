"""Streaming clients of one server, in a process of their own, so that their work is not taken for the server's.

`python -m openmercury.eval.clients` reads an object from stdin (`Load.visits` writes it) and prints what each saw.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from typing import Any

from openmercury.errors import ServerError

TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Visit:
    """One answer; seconds since the first question of all."""

    sent: float
    first_byte: float
    first_text: float
    end: float
    chunks: int
    tokens: int


@dataclass(frozen=True)
class Load:
    """Bodies of chats for the server at this port of this machine, so many at a time."""

    port: int
    bodies: Sequence[dict[str, Any]]
    clients: int

    def visits(self) -> list[Visit]:
        """Run the clients in a process of their own: on the CPUs that this one may not use, where there are any.

        Raises ServerError where one of them was not answered.
        """
        asked = json.dumps({**asdict(self), "avoid": sorted(os.sched_getaffinity(0))})
        command = [sys.executable, "-m", "openmercury.eval.clients"]
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerError(f"the clients failed: {done.stderr.strip().splitlines()[-1]}")
        return [Visit(**visit) for visit in json.loads(done.stdout)]


def _drive(load: Load) -> list[Visit]:
    todo, visits, failures = SimpleQueue[str](), list[Visit](), list[Exception]()
    for body in load.bodies:
        todo.put(json.dumps(body))
    begin = time.perf_counter()

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", load.port, timeout=TIMEOUT_SECONDS)
        try:
            while not failures:
                visits.append(_ask(connection, todo.get_nowait(), begin))
        except Empty:
            pass
        except Exception as error:  # whatever it is, the figures are no good
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(load.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return visits


def _ask(connection: http.client.HTTPConnection, body: str, begin: float) -> Visit:
    sent = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    reply = connection.getresponse()
    first_byte = time.perf_counter()
    if reply.status != 200:
        raise ServerError(f"HTTP {reply.status}: {reply.read().decode(errors='replace')[:300]}")
    first_text, chunks, usage = 0.0, 0, dict[str, Any]()
    while line := reply.readline():
        if not line.startswith(b"data: {"):
            continue
        chunks += 1
        if not first_text and b'"content":""' not in line:
            first_text = time.perf_counter()
        if b'"usage"' in line:
            usage = json.loads(line[6:])["usage"]
    end = time.perf_counter()
    tokens = usage["completion_tokens"]
    return Visit(sent - begin, first_byte - begin, (first_text or end) - begin, end - begin, chunks, tokens)


def _main() -> None:
    asked = json.load(sys.stdin)
    others = set(range(os.cpu_count() or 1)) - set(asked.pop("avoid"))
    with contextlib.suppress(OSError):  # there are none, or none for us: then they are shared
        os.sched_setaffinity(0, others)
    json.dump([asdict(visit) for visit in _drive(Load(**asked))], sys.stdout)


if __name__ == "__main__":
    _main()
