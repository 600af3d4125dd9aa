# SPDX-License-Identifier: Apache-2.0
"""The page manager against a plain model of it, under any order of calls."""

from __future__ import annotations

from pathlib import Path

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strikes import interrupt, strikes

from ardiff_engine.errors import ConfigError, OutOfPagesError, PageTableError
from ardiff_engine.memory import PageManager, choose_page_rows, page_manager

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


@pytest.mark.parametrize("by", ["ctrl-c", "collector"])
def test_whatever_comes_in_between_every_page_is_free_or_held(by):
    """Ctrl-C at any place of any call; and the collector, which closes the lease that is at work."""
    for strike in strikes(Path(page_manager.__file__), least=60):
        manager = PageManager(12)
        first, second = manager.lease(5), manager.lease(6)
        shared = first.take(3)
        try:
            strike.act = interrupt if by == "ctrl-c" else second.close
            with strike:
                second.share(first, shared)
                second.make_writable(list(shared[:2]))
                second.give_back(second.take(2))
                second.resize(5)
                second.keep(shared)
                second.close()
        except (KeyboardInterrupt, PageTableError):
            pass
        holders = [(page in first._held) + (page in second._held) for page in range(12)]
        assert holders == [manager.holders(page) for page in range(12)], strike.place
        assert manager.free == holders.count(0) and manager.free + manager.held == 12
        assert manager.unpromised == 12 - 5 - (0 if second.closed else second.most)
        assert second.held <= second.most and first.held == 3
        second.close()
        first.close()
        assert manager.unpromised == manager.free == 12
        assert sorted(manager.lease(12).take(12)) == list(range(12))


def test_pages_that_nobody_got_are_returned():
    manager = PageManager(8)
    lease = manager.lease(6)
    kept = lease.take(2)
    lease.take(3)
    lease.keep(kept)
    assert lease.held == 2 and manager.free == 6 and len(lease.take(4)) == 4


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
