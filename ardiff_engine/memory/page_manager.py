# SPDX-License-Identifier: Apache-2.0
"""Who holds which page. Pure Python: no tensor in sight, so property tests can run it a million times.

A stream takes a `Lease` when it is admitted: a promise of as many pages as it can ever need. Pages are then
taken and given back within the lease, so a running stream never meets an empty pool. Forked streams hold the
same pages until one of them writes (`Lease.make_writable`): a page has one holder or no writer.

Invariants, at all times: free + held == total; a page is free exactly when no lease holds it; a lease holds
no more than it was promised, shared pages included; the promises add up to at most total.

An interrupt in the middle of a call may break them; `PageManager.recount` makes them true again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ardiff_engine.arguments import integer
from ardiff_engine.errors import ConfigError, OutOfPagesError, PageTableError, explain


class PageManager:
    """Page ids 0..total-1, each with the number of leases that hold it. The longest unused is taken first."""

    __slots__ = ("_free", "_holders", "_promised", "total")

    def __init__(self, total: int) -> None:
        total = integer("pages in the pool", total, high=2**31)
        if total < 1:
            raise ConfigError(
                explain("pages in the pool", got=total, expected=">= 1", fix="Raise max_pages.")
            )
        self.total = total
        self._free = deque(range(total))
        self._holders = [0] * total
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

    def holders(self, page: int) -> int:
        """How many leases hold the page."""
        return self._holders[page]

    def lease(self, most: int) -> Lease:
        """Promise `most` pages, or raise OutOfPagesError and change nothing."""
        if most < 0:
            raise ConfigError(
                explain(
                    "pages of a lease", got=most, expected=">= 0", fix="Ask for what the stream can need."
                )
            )
        self._check_promise(most, most)
        self._promised += most
        return Lease(self, most)

    def recount(self, leases: Iterable[Lease]) -> None:
        """Make the books right after a call that was broken off. leases: all that are open."""
        leases = list(leases)
        self._holders = [0] * self.total
        for lease in leases:
            for page in lease._held:
                self._holders[page] += 1
        self._free = deque(page for page in range(self.total) if not self._holders[page])
        self._promised = sum(lease.most for lease in leases)

    def _take(self) -> int:
        page = self._free.popleft()
        self._holders[page] = 1
        return page

    def _return(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page]:
            self._free.append(page)

    def _check_promise(self, more: int, most: int) -> None:
        if more > self.unpromised:
            raise OutOfPagesError(
                explain(
                    "the page pool is full",
                    got=f"a stream that can need {most} pages",
                    expected=f"at most {self.unpromised + most - more} ({self.free} free now, "
                    f"{self.total} in total, the rest promised to running streams)",
                    fix="Wait for a stream to finish, use a smaller window, or raise max_pages.",
                )
            )


class Lease:
    """The pages of one stream: taken and given back one frame at a time, all returned by `close()`."""

    __slots__ = ("_held", "_manager", "most")

    def __init__(self, manager: PageManager, most: int) -> None:
        self._manager: PageManager | None = manager
        self._held: dict[int, None] = {}
        self.most = most

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def closed(self) -> bool:
        return self._manager is None

    def take(self, count: int) -> list[int]:
        """`count` pages that nobody else holds. More than was promised is refused, and nothing is taken."""
        manager = self._open()
        self._fits(count)
        pages = [manager._take() for _ in range(count)]
        self._held.update(dict.fromkeys(pages))
        return pages

    def share(self, other: Lease, pages: list[int]) -> None:
        """`hold` pages of `other`."""
        if other._open() is not self._open() or set(pages) - other._held.keys():
            raise PageTableError(f"pages to share: got {pages}, expected some of {sorted(other._held)}.")
        self.hold(pages)

    def hold(self, pages: list[int]) -> None:
        """Hold pages that other leases hold. Nobody may write them from now on: see `make_writable`."""
        manager = self._open()
        self._fits(len(pages))
        if any(page in self._held or not manager._holders[page] for page in pages):
            raise PageTableError(
                explain(
                    "pages to share",
                    got=pages,
                    expected="pages that other leases hold and this one does not",
                    fix="Share pages of a lease of the same pool, once.",
                )
            )
        for page in pages:
            manager._holders[page] += 1
            self._held[page] = None

    def make_writable(self, pages: list[int]) -> None:
        """Put fresh pages in the places of those that others hold too.

        The contents are not copied: a frame that is fed writes all of its rows before anyone reads them.
        There always is a free page: each holder was promised one.
        """
        manager = self._open()
        for index, shared in enumerate(pages):
            if manager._holders[shared] > 1:
                pages[index] = page = manager._take()
                self._held[page] = None
                del self._held[shared]
                manager._return(shared)

    def resize(self, most: int) -> None:
        """Change the promise, or raise OutOfPagesError and change nothing."""
        manager = self._open()
        if most < len(self._held):
            raise OutOfPagesError(
                explain(
                    "a promise below what is held",
                    got=most,
                    expected=f"at least {len(self._held)}",
                    fix="Give pages back first.",
                )
            )
        more = most - self.most
        manager._check_promise(more, most)
        manager._promised += more
        self.most = most

    def give_back(self, pages: list[int]) -> None:
        """Return pages of this lease. A page that it does not hold is refused, and nothing is returned."""
        self._open()
        if len(set(pages)) != len(pages) or set(pages) - self._held.keys():
            raise PageTableError(
                explain(
                    "pages to give back",
                    got=pages,
                    expected=f"distinct pages among {sorted(self._held)}",
                    fix="Give back each page once.",
                )
            )
        self._release(pages)

    def close(self) -> None:
        """Return every page and the promise. Safe to call twice."""
        manager = self._manager
        if manager is not None:
            self._release(list(self._held))
            manager._promised -= self.most
            self._manager = None

    def _release(self, pages: list[int]) -> None:
        manager = self._open()
        for page in pages:
            del self._held[page]
            manager._return(page)

    def _fits(self, count: int) -> None:
        if len(self._held) + count > self.most:
            raise OutOfPagesError(
                explain(
                    "a stream asked for more pages than it was promised",
                    got=f"{len(self._held)} held + {count}",
                    expected=f"at most {self.most}",
                    fix="The memory policy's most_frames is too small for this plan.",
                )
            )

    def _open(self) -> PageManager:
        if self._manager is None:
            raise PageTableError(
                explain(
                    "a closed lease", got="a call", expected="none after close()", fix="Take a new lease."
                )
            )
        return self._manager
