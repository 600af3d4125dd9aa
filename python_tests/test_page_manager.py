# SPDX-License-Identifier: Apache-2.0
"""The page manager against a plain model of it, under any order of calls."""

from __future__ import annotations

from collections import deque

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from ardiff_engine.errors import ConfigError, OutOfPagesError, PageTableError
from ardiff_engine.memory import PageManager, choose_page_rows

CALLS = st.lists(
    st.tuples(st.sampled_from(["lease", "take", "give", "close"]), st.integers(0, 5), st.integers(0, 9)),
    max_size=60,
)


@settings(max_examples=examples(300), deadline=None)
@given(total=st.integers(1, 24), calls=CALLS)
def test_invariants_under_any_order_of_calls(total, calls):
    manager = PageManager(total)
    leases: list = []
    pages: list[list[int]] = []
    for name, which, count in calls:
        before = (manager.free, manager.unpromised, [list(p) for p in pages])
        try:
            if name == "lease":
                leases.append(manager.lease(count))
                pages.append([])
            elif leases:
                i = which % len(leases)
                if name == "take":
                    taken = leases[i].take(count)
                    assert len(taken) == count
                    pages[i] += taken
                elif name == "give":
                    back = pages[i][:count]
                    leases[i].give_back(back)
                    pages[i] = pages[i][len(back) :]
                else:
                    leases[i].close()
                    pages[i] = []
        except (OutOfPagesError, PageTableError):
            assert before == (manager.free, manager.unpromised, pages), "a refused call changed something"
        held = [page for own in pages for page in own]
        assert len(held) == len(set(held)), "a page with two owners"
        assert manager.free + manager.held == total and manager.held == len(held)
        assert manager.unpromised == total - sum(lease.most for lease in leases if not lease.closed)
        assert all(lease.held <= lease.most for lease in leases)
    for lease in leases:
        lease.close()
    assert manager.free == manager.unpromised == total


def test_a_lease_is_never_short_of_its_promise():
    manager = PageManager(10)
    first, second = manager.lease(6), manager.lease(4)
    first.take(6)
    assert len(second.take(4)) == 4
    with pytest.raises(OutOfPagesError, match="at most 0"):
        manager.lease(1)
    with pytest.raises(OutOfPagesError, match="promised"):
        first.take(1)


def test_wrong_returns_are_refused():
    manager = PageManager(4)
    first, second = manager.lease(2), manager.lease(2)
    mine, other = first.take(2), second.take(1)
    for wrong in (other, [mine[0], mine[0]], [99]):
        with pytest.raises(PageTableError):
            first.give_back(wrong)
    first.close()
    first.close()
    with pytest.raises(PageTableError, match="closed"):
        first.take(1)
    with pytest.raises(ConfigError):
        PageManager(0)
    with pytest.raises(ConfigError):
        manager.lease(-1)


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [(32, 32), (16, 16), (1560, 112), (3600, 144), (1024, 128), (80, 80), (3, 16), (77, 80), (64, 64)],
)
def test_page_rows_with_the_least_padding(tokens, rows):
    assert choose_page_rows(tokens) == rows


@settings(max_examples=100, deadline=None)
@given(total=st.integers(4, 16), calls=CALLS, broken=st.integers(0, 30))
def test_a_recount_makes_the_books_right_after_a_call_that_was_broken_off(total, calls, broken):
    """An interrupt after any return of a page to the ring, or before any taking of one."""
    manager, leases, left = PageManager(total), [], [broken]

    class Interrupted(Exception):
        pass

    class Broken(deque):
        def append(self, page):
            super().append(page)
            self.count()

        def popleft(self):
            self.count()
            return super().popleft()

        def count(self):
            left[0] -= 1
            if left[0] == 0:
                raise Interrupted

    manager._free = Broken(range(total))
    for name, which, count in calls:
        try:
            if name == "lease":
                leases.append(manager.lease(count))
            elif leases:
                lease = leases[which % len(leases)]
                if name == "take":
                    lease.take(count)
                elif name == "give":
                    lease.give_back(list(lease._held)[:count])
                else:
                    lease.close()
        except (OutOfPagesError, PageTableError):
            pass
        except Interrupted:
            manager.recount([lease for lease in leases if not lease.closed])
            break
    left[0] = 0
    held = [page for lease in leases for page in lease._held]
    assert manager.held == len(held) and manager.free == total - len(held)
    assert [manager.holders(page) for page in range(total)] == [held.count(page) for page in range(total)]
    assert manager.unpromised == total - sum(lease.most for lease in leases if not lease.closed)
    for lease in leases:
        lease.close()
    assert sorted(manager.lease(total).take(total)) == list(range(total))


def test_shared_pages_are_replaced_in_place():
    manager = PageManager(8)
    first, second = manager.lease(4), manager.lease(4)
    pages = first.take(3)
    second.share(first, pages[:2])
    own = list(pages)
    first.make_writable(own)
    assert own[2] == pages[2] and not set(own[:2]) & set(pages)
    before = list(own)
    first.make_writable(own)
    assert own == before and [manager.holders(page) for page in pages] == [1, 1, 1]
