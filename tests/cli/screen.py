"""A terminal as small as the tests need: it keeps what a user would see, and refuses codes it does not know."""

from __future__ import annotations

import io
import re

CODE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])")


class Screen(io.StringIO):
    """Rows that scrolled away stay in `rows`; the cursor may not climb above the last `height` of them."""

    def __init__(self, width: int = 40, height: int = 10) -> None:
        super().__init__()
        self.width, self.height = width, height
        self.rows = [""]
        self.row = self.column = 0
        self.cursor_shown = True

    def write(self, text: str) -> int:
        at = 0
        while at < len(text):
            if found := CODE.match(text, at):
                self._control(found[1], found[2])
                at = found.end()
            else:
                self._put(text[at])
                at += 1
        return len(text)

    def _control(self, arguments: str, code: str) -> None:
        if code == "A":
            self.row -= int(arguments or 1)
            assert self.row >= max(0, len(self.rows) - self.height), "the region is taller than the terminal"
        elif code == "K":
            assert arguments == "2"
            self.rows[self.row] = ""
        elif arguments == "?25":
            self.cursor_shown = code == "h"
        else:
            assert code == "m", f"unknown code {arguments}{code}"

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._next_row()
        else:
            assert character.isprintable(), f"control character {character!r} reached the terminal"
            if self.column == self.width:  # a full row wraps when the next character comes
                self._next_row()
            self.rows[self.row] = self.rows[self.row].ljust(self.column)[: self.column] + character
            self.column += 1

    def _next_row(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append("")

    @property
    def shown(self) -> str:
        """All rows, blank ends cut."""
        return "\n".join(row.rstrip() for row in self.rows).rstrip("\n")
