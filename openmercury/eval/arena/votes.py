"""Votes in one SQLite file, which several processes may share.

Every call opens its own connection and ends its own transaction, so threads and processes need no lock of ours.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from openmercury.errors import DataError
from openmercury.eval.store import differences

# "bad": both are. "same": the two texts are equal, which nobody needs to be asked.
Outcome = Literal["first", "second", "tie", "bad", "same"]
CHOICES: dict[str, Outcome] = {"first": "first", "second": "second", "tie": "tie", "bad": "bad"}  # a person's
APPLICATION = 0x4F4D4156  # "OMAV" in the file's header: tells our file from any other SQLite database
SCHEMA = 1
WAIT_SECONDS = 30.0  # for another process's transaction


@dataclass(frozen=True)
class Vote:
    """What became of one match. `first` is the contestant that was shown as "1"; seconds are wall-clock time.

    `at` is UTC in ISO 8601. The prompt and the texts are kept, so that a second person can look at any vote.
    """

    match: str
    at: str
    first: str
    second: str
    outcome: Outcome
    first_seconds: float
    second_seconds: float
    first_tokens: int
    second_tokens: int
    prompt: str
    first_text: str
    second_text: str

    @property
    def winner(self) -> str | None:
        """The contestant that was preferred; None for every kind of tie."""
        return {"first": self.first, "second": self.second}.get(self.outcome)


COLUMNS = tuple(field.name for field in fields(Vote))
TABLES = f"""
CREATE TABLE contestant (name TEXT PRIMARY KEY, identity TEXT NOT NULL);
CREATE TABLE vote (
    match TEXT PRIMARY KEY,
    at TEXT NOT NULL,
    first TEXT NOT NULL REFERENCES contestant,
    second TEXT NOT NULL REFERENCES contestant,
    outcome TEXT NOT NULL CHECK (outcome IN {get_args(Outcome)}),
    first_seconds REAL NOT NULL,
    second_seconds REAL NOT NULL,
    first_tokens INTEGER NOT NULL,
    second_tokens INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    first_text TEXT NOT NULL,
    second_text TEXT NOT NULL
);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA};
"""


class Votes:
    """The votes of one file, which is made where there is none."""

    def __init__(self, path: Path) -> None:
        """Raises DataError where the file is no place for votes."""
        self.path = path
        with self._transaction() as db:
            self._ensure_tables(db)

    def enter(self, name: str, identity: Mapping[str, Any]) -> None:
        """Make a contestant known; raises DataError where votes know another system by this name."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO contestant VALUES (?, ?)", (name, json.dumps(identity)))
            [known] = db.execute("SELECT identity FROM contestant WHERE name = ?", (name,)).fetchone()
        changed = differences(json.loads(known), identity)
        if changed:
            raise DataError(f"{self.path} holds votes on another {name} ({changed}): give another file with --votes")

    def add(self, vote: Vote) -> bool:
        """Keep a vote; False where this match has one already, which stands."""
        marks = ", ".join("?" * len(COLUMNS))
        sql = f"INSERT INTO vote ({', '.join(COLUMNS)}) VALUES ({marks}) ON CONFLICT (match) DO NOTHING"
        with self._transaction() as db:
            return db.execute(sql, astuple(vote)).rowcount == 1

    def all(self) -> list[Vote]:
        """Every vote, oldest first."""
        with self._transaction() as db:
            rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM vote ORDER BY at, match").fetchall()
        return [Vote(*row) for row in rows]

    def _ensure_tables(self, db: sqlite3.Connection) -> None:
        [application], [schema] = (
            db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if (application, schema) == (APPLICATION, SCHEMA):
            return
        if application == APPLICATION:
            raise DataError(
                f"{self.path} holds votes in form {schema} and this version reads form {SCHEMA}: "
                "use the version of openmercury that wrote it, or name another file with --votes"
            )
        if application or schema or db.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            raise DataError(f"{self.path} is another program's database: name another file with --votes")
        for statement in TABLES.split(";"):  # one by one: executescript would end the transaction
            db.execute(statement)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Begins as a writer: a reader that became one could not wait for another writer."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise DataError(
                f"{self.path} cannot be used for votes ({error}): check its folder, or name another file with --votes"
            ) from None
