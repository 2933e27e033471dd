"""Pages of the KV cache: who holds them, and which hold a prefix that the next request can share.

A page is a fixed run of `size` slots. Full pages of committed text are remembered under a chain of cryptographic
digests over all tokens up to their end, so a request whose prompt begins alike takes them as they are: shared, never
copied; and nobody can make up a prompt that is mistaken for another's. A page nobody holds stays remembered until its
slots are needed; the one longest unused goes first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

Key = bytes  # digest of (the key of the page before, the page's tokens)

EMPTY = 0  # page 0 belongs to nobody: padding is written there


class PagePool:
    """Counts holders of pages; the tensors themselves are the cache's business."""

    def __init__(self, pages: int, size: int, *, remember: bool = True) -> None:
        self.size, self.pages, self.remember = size, pages, remember
        self.free = list(range(pages - 1, EMPTY, -1))
        self.holders = [0] * pages
        self.idle: OrderedDict[int, None] = OrderedDict()  # remembered pages without a holder, oldest first
        self.page_of: dict[Key, int] = {}
        self.key_of: dict[int, Key] = {}

    @property
    def available(self) -> int:
        """Pages that can be taken now."""
        return len(self.free) + len(self.idle)

    @property
    def capacity(self) -> int:
        """Pages one request could hold if it were alone."""
        return self.pages - 1

    def take(self, count: int) -> list[int] | None:
        """`count` pages with one holder each, or None when there are not enough; forgets idle prefixes as needed."""
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            if self.free:
                page = self.free.pop()
            else:
                page, _none = self.idle.popitem(last=False)
                self._forget(page)
            self.holders[page] = 1
            taken.append(page)
        return taken

    def share(self, tokens: Sequence[int]) -> list[int]:
        """Remembered pages of the longest known prefix of `tokens`, each with one more holder."""
        found: list[int] = []
        for key in self._keys(tokens):
            page = self.page_of.get(key)
            if page is None:
                break
            self.idle.pop(page, None)
            self.holders[page] += 1
            found.append(page)
        return found

    def record(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Remember the full pages of `tokens`, whose slots are written. A prefix known under another page stays so."""
        if not self.remember:
            return
        for key, page in zip(self._keys(tokens), pages, strict=False):
            if key not in self.page_of and page not in self.key_of:
                self.page_of[key], self.key_of[page] = page, key

    def release(self, pages: Sequence[int]) -> None:
        """One holder less for each; pages nobody holds become idle if remembered, else free. The tail goes first."""
        for page in reversed(pages):
            self.holders[page] -= 1
            assert self.holders[page] >= 0
            if self.holders[page] == 0:
                if page in self.key_of:
                    self.idle[page] = None
                else:
                    self.free.append(page)

    def _keys(self, tokens: Sequence[int]) -> Iterator[Key]:
        text, key = array("i", tokens), b""
        for end in range(self.size, len(text) + 1, self.size):
            key = blake2b(key + text[end - self.size : end].tobytes(), digest_size=32).digest()
            yield key

    def _forget(self, page: int) -> None:
        del self.page_of[self.key_of.pop(page)]

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """Assert that holders are exactly the requests' page lists `held`, and every page is somewhere once."""
        count = [0] * self.pages
        for pages in held:
            assert len(set(pages)) == len(pages)
            assert EMPTY not in pages
            for page in pages:
                count[page] += 1
        assert count == self.holders
        spare = set(self.free) | set(self.idle)
        assert len(self.free) + len(self.idle) == len(spare)
        assert spare == {page for page in range(1, self.pages) if not count[page]}
        assert all(page in self.key_of for page in self.idle)
        assert not any(page in self.key_of for page in self.free)
        assert {key: page for page, key in self.key_of.items()} == self.page_of
