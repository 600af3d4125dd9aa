# SPDX-License-Identifier: Apache-2.0
"""The schedule of the Hopper frame attention kernel (csrc/include/ardiff/attention_stream_k.h).

Properties of random tables: everything is computed once, in a fixed order; and how evenly the work is shared
at the shapes that the policy was made for, on a GPU of 132 multiprocessors.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention_work import random_table, visible

from ardiff_engine._native import native, why_not
from ardiff_engine.ops.frame_table import FrameTable

TOKEN, ROW, ROWS, FRAME, FRAMES, BLOCK, FIRST, LAST, PART, KV_HEAD = range(10)
TILE_ROWS = 128


@dataclass(frozen=True)
class Plan:
    """`StreamKPlan`, as arrays with one row per item; merges are token, row, rows, part, parts, kv head."""

    begins: np.ndarray
    items: np.ndarray
    merges: np.ndarray
    blocks: np.ndarray
    limits: np.ndarray
    parts: int

    def loads(self, boxes: int) -> list[int]:
        """Steps of each worker."""
        steps = -(-(self.items[:, LAST] - self.items[:, FIRST]) // boxes)
        return [int(steps[a:b].sum()) for a, b in pairwise(self.begins.tolist())]


def plan(
    table: FrameTable,
    heads: int,
    kv_heads: int,
    multiprocessors: int,
    block_rows: int,
    with_room: bool = False,
) -> Plan:
    module = native()
    assert module is not None, why_not()
    arrays = (table.frame_ptr, table.group_ptr, table.page_ptr, table.valid, table.seen)
    raw, sizes = module.attention_stream_k(
        [x.data_ptr() for x in arrays],
        table.num_groups,
        heads,
        kv_heads,
        multiprocessors,
        block_rows,
        with_room,
    )
    items, merges, blocks, frames, workers, parts = sizes
    assert workers == multiprocessors
    buffer, at, found = np.frombuffer(raw, np.int32), 0, []
    for number, width in ((workers + 1, 1), (items, 10), (merges, 6), (blocks, 2), (frames, 1)):
        found.append(buffer[at : at + number * width].reshape(number, width))
        at += number * width
    assert at == buffer.size
    begins, items, merges, blocks, limits = found
    return Plan(begins[:, 0], items, merges, blocks, limits[:, 0], parts)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(1, 1), (4, 2), (6, 2), (12, 12)]),
    st.sampled_from([1, 16, 132]),
    st.sampled_from([16, 32, 64, 112, 128]),
)
def test_plan_covers_everything_once(
    seed: int, heads: tuple[int, int], multiprocessors: int, block_rows: int
) -> None:
    """Every (token, head) is in one item, or in the parts of one merge, in key order; they hold each key that
    it sees once."""
    table, (all_heads, kv_heads) = random_table(seed), heads
    share, boxes = all_heads // kv_heads, 1 if block_rows == 112 else 128 // block_rows
    made = plan(table, *heads, multiprocessors, block_rows)
    assert made.begins[0] == 0 and made.begins[-1] == len(made.items) and (np.diff(made.begins) >= 0).all()
    covered: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
    for item in made.items.tolist():
        assert 0 < item[ROWS] <= TILE_ROWS
        assert item[FIRST] <= item[LAST] and item[FIRST] % boxes == 0
        for row in range(item[ROW], item[ROW] + item[ROWS]):
            key = (item[TOKEN] + row // share, row % share, item[KV_HEAD])
            covered.setdefault(key, []).append((item[FIRST], item[LAST], item[PART]))
    parts_of = {}
    for token, row, rows, part, count, kv_head in made.merges.tolist():
        assert count > 1
        for r in range(row, row + rows):
            parts_of[token + r // share, r % share, kv_head] = list(range(part, part + count))
    starts = {item[TOKEN]: item[BLOCK] for item in made.items.tolist()}
    want = set()
    for group in range(table.num_groups):
        first_frame, end_frame = (int(table.group_ptr[group + i]) for i in (0, 1))
        for frame in range(first_frame, end_frame):
            keys, limit = visible(table, group, frame), int(made.limits[frame])
            tokens = range(int(table.frame_ptr[frame]), int(table.frame_ptr[frame + 1]))
            for place in product(tokens, range(share), range(kv_heads)):
                want.add(place)
                ranges = sorted(covered[place])
                assert [part for *_, part in ranges] == parts_of.get(place, [-1])
                seen = [box for first, last, _ in ranges for box in range(first, min(last, limit))]
                assert seen == list(range(limit))
            if tokens:
                start = starts[int(table.frame_ptr[first_frame])]
                rows = [
                    (entry, row + i)
                    for entry, row in made.blocks[start : start + limit].tolist()
                    for i in range(min(block_rows, int(table.valid[entry]) - row))
                ]
                assert rows == keys
    assert set(covered) == want
    parts = [part for part in made.items[:, PART].tolist() if part >= 0]
    assert sorted(parts) == list(range(made.parts))


def wan(queries: int, keys: int) -> FrameTable:
    """Frames of 1560 tokens in pages of 112 rows."""
    frames = keys // 1560
    return FrameTable.build([queries], [list(range(14 * frames))], [([112] * 13 + [104]) * frames])


@pytest.mark.parametrize(
    ("queries", "keys", "before"), [(4680, 18720, 0.85), (4680, 32760, 0.85), (1560, 14040, 0.6)]
)
def test_work_is_shared_evenly(queries: int, keys: int, before: float) -> None:
    """At least 98 % of the time of all workers is work; with whole tiles it would be `before` at most."""
    made = plan(wan(queries, keys), 12, 12, 132, 112)
    loads = made.loads(1)
    tiles, steps = -(-queries // TILE_ROWS) * 12, 14 * keys // 1560
    assert sum(loads) == tiles * steps
    assert sum(loads) / 132 / max(loads) >= 0.98
    assert tiles / 132 / -(-tiles // 132) <= before
    assert made.parts <= 2 * 132
    # Whole tiles first, and side by side on the same pages: what keeps K and V in the L2 cache.
    firsts = made.items[made.begins[:-1]]
    assert (firsts[:, PART] == -1).all()
    assert sorted(set(firsts[:, KV_HEAD].tolist())) == list(range(-(-132 * 128 // queries)))


def test_short_tiles_are_not_cut() -> None:
    """64 streams of one 32-token frame: 1024 tiles of 5 steps are nearly even as they are."""
    valid = [[32] * 18 + [13]] * 64
    table = FrameTable.build([32] * 64, [list(range(19 * i, 19 * i + 19)) for i in range(64)], valid)
    made = plan(table, 16, 16, 132, 32)
    assert made.parts == 0 and max(made.loads(4)) == 40


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 16, 132]), st.sampled_from([16, 112]))
def test_room_is_added_behind_and_does_nothing(seed: int, multiprocessors: int, block_rows: int) -> None:
    """Merges without rows, of which each is a thread block to start, and items that no worker takes."""
    table = random_table(seed)
    made = plan(table, 4, 2, multiprocessors, block_rows)
    room = plan(table, 4, 2, multiprocessors, block_rows, with_room=True)
    assert (room.begins == made.begins).all() and (room.limits == made.limits).all()
    for own, more in ((made.items, room.items), (made.merges, room.merges), (made.blocks, room.blocks)):
        assert (more[: len(own)] == own).all() and not more[len(own) :].any()
        assert len(more) <= 2 * len(own)
    assert len(room.merges) <= 1.25 * len(made.merges)
    assert made.parts <= room.parts <= 2 * made.parts


def test_room_makes_the_sizes_of_similar_tables_equal() -> None:
    """A frame of Wan more, from 1 to 21 frames: 21 tables, few sizes."""
    sizes = set()
    for frames in range(1, 22):
        made = plan(wan(1560, 1560 * frames), 12, 12, 132, 112, with_room=True)
        sizes.add((len(made.items), len(made.merges), len(made.blocks), made.parts))
    assert len(sizes) < 10


def test_what_cannot_be_planned() -> None:
    table = wan(1560, 1560)
    for block_rows in (0, 8, 96, 144, 256):
        with pytest.raises(ValueError, match="block_rows"):
            plan(table, 12, 12, 132, block_rows)
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        plan(table, 12, 5, 132, 112)
