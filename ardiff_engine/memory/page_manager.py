# SPDX-License-Identifier: Apache-2.0
"""Who owns which page. Pure Python: no tensor in sight, so property tests can run it a million times.

A stream takes a `Lease` when it is admitted: a promise of as many pages as it can ever need. Pages are then
taken and given back within the lease, so a running stream never meets an empty pool. Invariants, at all
times: free + held == total; a page belongs to at most one lease; the promises add up to at most total.
"""

from __future__ import annotations

from collections import deque

from ardiff_engine.errors import ConfigError, OutOfPagesError, PageTableError, explain


class PageManager:
    """Page ids 0..total-1, free or held."""

    __slots__ = ("_free", "_promised", "total")

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ConfigError(
                explain("pages in the pool", got=total, expected=">= 1", fix="Raise max_pages.")
            )
        self.total = total
        self._free: deque[int] = deque(range(total))
        self._promised = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def held(self) -> int:
        return self.total - len(self._free)

    @property
    def unpromised(self) -> int:
        """Pages that a new lease can still be given."""
        return self.total - self._promised

    def lease(self, most: int) -> Lease:
        """Promise `most` pages, or raise OutOfPagesError and change nothing."""
        if most < 0:
            raise ConfigError(
                explain(
                    "pages of a lease", got=most, expected=">= 0", fix="Ask for what the stream can need."
                )
            )
        if most > self.unpromised:
            raise OutOfPagesError(
                explain(
                    "the page pool is full",
                    got=f"a stream that can need {most} pages",
                    expected=f"at most {self.unpromised} ({self.free} free now, {self.total} in total, "
                    "the rest promised to running streams)",
                    fix="Wait for a stream to finish, use a smaller window, or raise max_pages.",
                )
            )
        self._promised += most
        return Lease(self, most)


class Lease:
    """The pages of one stream: taken and given back one frame at a time, all returned by `close()`."""

    __slots__ = ("_held", "_manager", "most")

    def __init__(self, manager: PageManager, most: int) -> None:
        self._manager: PageManager | None = manager
        self._held: set[int] = set()
        self.most = most

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def closed(self) -> bool:
        return self._manager is None

    def take(self, count: int) -> list[int]:
        """`count` pages that nobody else writes. More than was promised is refused, and nothing is taken."""
        manager = self._open()
        if len(self._held) + count > self.most:
            raise OutOfPagesError(
                explain(
                    "a stream asked for more pages than it was promised",
                    got=f"{len(self._held)} held + {count}",
                    expected=f"at most {self.most}",
                    fix="The memory policy's max_frames is too small for this plan.",
                )
            )
        pages = [manager._free.popleft() for _ in range(count)]
        self._held.update(pages)
        return pages

    def give_back(self, pages: list[int]) -> None:
        """Return pages of this lease. A page that it does not hold is refused, and nothing is returned."""
        manager = self._open()
        if len(set(pages)) != len(pages) or not self._held.issuperset(pages):
            raise PageTableError(
                explain(
                    "pages to give back",
                    got=pages,
                    expected=f"distinct pages among {sorted(self._held)}",
                    fix="Give back each page once.",
                )
            )
        self._held.difference_update(pages)
        manager._free.extend(pages)

    def close(self) -> None:
        """Return every page and the promise. Safe to call twice."""
        if self._manager is None:
            return
        self._manager._free.extend(sorted(self._held))
        self._manager._promised -= self.most
        self._held.clear()
        self._manager = None

    def _open(self) -> PageManager:
        if self._manager is None:
            raise PageTableError(
                explain(
                    "a closed lease", got="a call", expected="none after close()", fix="Take a new lease."
                )
            )
        return self._manager
