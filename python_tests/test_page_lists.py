# SPDX-License-Identifier: Apache-2.0
"""Views gathered for all sequences at a time list the pages that each frame is to see, one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ar_diffusion import tiny

from ardiff_engine.engine.feeder import Feeder
from ardiff_engine.engine.page_lists import page_lists
from ardiff_engine.memory import Full, RecomputedWindow, Window
from ardiff_engine.models import ConditionSpec
from ardiff_engine.ops.frame_table import FrameTable
from ardiff_engine.plan import lag

SPEC = tiny("separate_norm", "temporal_causal", "rope").spec
POLICIES = (RecomputedWindow(4), Window(3), Window(2, sink=2), Window(5, sink=1), Full())


def seen_places(table: FrameTable) -> list[list[int]]:
    """What every query frame sees, by the definition of a FrameTable."""
    found = []
    for group in range(table.num_groups):
        begin = int(table.page_ptr[group])
        for frame in range(int(table.group_ptr[group]), int(table.group_ptr[group + 1])):
            found.append(table.pages[begin : begin + int(table.seen[frame])].tolist())
    return found


@st.composite
def streams(draw):
    """A feeder somewhere in the life of a stream, sometimes after everything before was forgotten."""
    policy = draw(st.sampled_from(POLICIES))
    steps, prefix = draw(st.integers(2, 9)), draw(st.integers(0, 3))
    feeder = Feeder(lag(12, steps, draw(st.integers(-(-steps // 2), steps)), prefix=prefix), policy, SPEC)
    for _ in range(draw(st.integers(0, 40))):
        feeder.advance(feeder.next())
        if feeder.done:
            break
        if draw(st.integers(0, 30)) == 0:
            feeder.forget()
    return (feeder, policy) if not feeder.done else draw(streams())


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(streams(), min_size=1, max_size=4), st.integers(1, 2), st.integers(1, 3))
def test_every_frame_sees_what_it_is_to_see(parts, context_pages, frame_pages):
    spec = replace(
        SPEC,
        tokens_per_frame=4 * frame_pages,
        condition=ConditionSpec("joint", 5 * context_pages, (7, 4)),
    )
    context_valid, frame_valid = [5] * context_pages, [4] * frame_pages
    rosters, views, base, expected, contexts, fed = [], [], 0, [], [], []
    for feeder, _ in parts:
        roster = feeder.next().roster
        shown = [(frame, run.copy) for run in roster.shown for frame in range(run.first, run.stop)]
        rosters.append(roster)
        views.append(roster.sequence.views)
        assert sorted(set(shown)) == sorted(shown)
        places = {cell: base + context_pages + i * frame_pages for i, cell in enumerate(shown)}
        context = list(range(base, base + context_pages))
        if roster.feeds_context:
            contexts.append(context)
        for frame, copy, seen in zip(roster.frames, roster.copies, roster.views, strict=True):
            cells = [(other, run.copy) for run in seen for other in range(run.first, run.stop)]
            run = [places[cell] + page for cell in cells for page in range(frame_pages)]
            expected.append(context + run)
            fed.append([places[frame, copy] + page for page in range(frame_pages)])
        base += context_pages + len(shown) * frame_pages
    lists = page_lists(views, spec, context_valid, [frame_valid] * len(views))
    assert seen_places(lists.table) == contexts + expected
    assert lists.fed_places.tolist() == list(chain.from_iterable(contexts + fed))
    assert lists.num_contexts == len(contexts)
    tokens = np.diff(lists.table.frame_ptr.numpy())
    assert tokens.tolist() == [5 * context_pages] * len(contexts) + [4 * frame_pages] * len(expected)
    assert set(lists.table.valid.tolist()) <= {4, 5}
    assert np.array_equal(lists.table.pages.numpy(), lists.listed)
