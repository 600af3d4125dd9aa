# SPDX-License-Identifier: Apache-2.0
"""The schedule of frame attention on a GPU (csrc/include/ardiff/attention_work.h), built on the host.

Properties of random tables: everything is computed once, in a fixed order; and the policy's choices at the
shapes that it was made for, on a GPU of 132 multiprocessors.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from ardiff_engine._native import native, why_not
from ardiff_engine.ops.frame_table import FrameTable

TOKEN, ROW, ROWS, FRAME, FRAMES, BLOCK, FIRST, LAST, PART = range(9)


@dataclass(frozen=True)
class Plan:
    """`AttentionPlan` of csrc/include/ardiff/attention_work.h, as arrays with one row per item."""

    tiles: np.ndarray
    merges: np.ndarray
    blocks: np.ndarray
    limits: np.ndarray
    tile_rows: int
    parts: int


def plan(table: FrameTable, heads: int, kv_heads: int, multiprocessors: int, with_room: bool = False) -> Plan:
    module = native()
    assert module is not None, why_not()
    arrays = (table.frame_ptr, table.group_ptr, table.page_ptr, table.valid, table.seen)
    addresses = [x.data_ptr() for x in arrays]
    raw, sizes = module.attention_work(
        addresses, table.num_groups, heads, kv_heads, multiprocessors, with_room
    )
    buffer = np.frombuffer(raw, np.int32)
    at, parts = 0, []
    for number, width in zip(sizes[:4], (9, 5, 2, 1), strict=True):
        parts.append(buffer[at : at + number * width].reshape(number, width))
        at += number * width
    assert at == buffer.size
    tiles, merges, blocks, limits = parts
    return Plan(tiles, merges, blocks, limits[:, 0], sizes[4], sizes[5])


def random_table(seed: int) -> FrameTable:
    draw = random.Random(seed)
    query_tokens, pages, valid, seen = [], [], [], []
    for _ in range(draw.randint(0, 5)):
        frames, entries = draw.randint(0, 6), draw.randint(0, draw.choice([3, 20]))
        query_tokens.append([draw.choice([0, 1, 7, 32, 33, 90]) for _ in range(frames)])
        pages.append([draw.randint(0, 99) for _ in range(entries)])
        valid.append([draw.choice([0, 1, 15, 16, 17, 32, 112, 144]) for _ in range(entries)])
        seen.append([draw.randint(0, entries) for _ in range(frames)])
    return FrameTable.build(query_tokens, pages, valid, seen)


def visible(table: FrameTable, group: int, frame: int) -> list[tuple[int, int]]:
    """(entry, row) of every key that a query frame sees, in order."""
    first = int(table.page_ptr[group])
    entries = range(first, first + int(table.seen[frame]))
    return [(entry, row) for entry in entries for row in range(int(table.valid[entry]))]


@settings(max_examples=examples(60), deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from([(1, 1), (4, 2), (6, 2), (12, 12)]), st.sampled_from([1, 16, 132])
)
def test_plan_covers_everything_once(seed: int, heads: tuple[int, int], multiprocessors: int) -> None:
    """Every (token, head) is in one tile, or in the parts of one merge; they hold each key it sees once."""
    table, share = random_table(seed), heads[0] // heads[1]
    made = plan(table, *heads, multiprocessors)
    covered: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for tile in made.tiles.tolist():
        assert 0 < tile[ROWS] <= made.tile_rows
        assert tile[FIRST] <= tile[LAST] and tile[FIRST] % 4 == 0
        for row in range(tile[ROW], tile[ROW] + tile[ROWS]):
            key = (tile[TOKEN] + row // share, row % share)
            covered.setdefault(key, []).append((tile[FIRST], tile[LAST], tile[PART]))
    parts_of = {}
    for token, row, rows, part, count in made.merges.tolist():
        for r in range(row, row + rows):
            parts_of[token + r // share, r % share] = list(range(part, part + count))
    blocks = made.blocks.tolist()
    starts = {tile[TOKEN]: tile[BLOCK] for tile in made.tiles.tolist()}
    want = set()
    for group in range(table.num_groups):
        first_frame, end_frame = (int(table.group_ptr[group + i]) for i in (0, 1))
        for frame in range(first_frame, end_frame):
            keys, limit = visible(table, group, frame), int(made.limits[frame])
            tokens = range(int(table.frame_ptr[frame]), int(table.frame_ptr[frame + 1]))
            for token, head in product(tokens, range(share)):
                want.add((token, head))
                ranges = sorted(covered[token, head])
                assert [part for *_, part in ranges] == parts_of.get((token, head), [-1])
                assert [b for first, last, _ in ranges for b in range(first, min(last, limit))] == list(
                    range(limit)
                )
            if tokens:
                start = starts[int(table.frame_ptr[first_frame])]
                rows = [
                    (entry, row + i)
                    for entry, row in blocks[start : start + limit]
                    for i in range(min(16, int(table.valid[entry]) - row))
                ]
                assert rows == keys
    assert set(covered) == want
    assert sorted(part for tile in made.tiles.tolist() if (part := tile[PART]) >= 0) == list(
        range(made.parts)
    )


@settings(max_examples=examples(50), deadline=None)
@given(st.integers(0, 2**32))
def test_tiles_name_the_frames_of_their_rows(seed: int) -> None:
    table = random_table(seed)
    offsets = table.frame_ptr.tolist()
    for tile in plan(table, 4, 2, 132).tiles.tolist():
        first, last = (tile[TOKEN] + row // 2 for row in (tile[ROW], tile[ROW] + tile[ROWS] - 1))
        frames = range(tile[FRAME], tile[FRAME] + tile[FRAMES])
        holders = [
            f for t in (first, last) for f in range(len(offsets) - 1) if offsets[f] <= t < offsets[f + 1]
        ]
        assert set(holders) <= set(frames)
        assert offsets[frames[0]] <= first < offsets[frames[0] + 1]
        assert offsets[frames[-1]] <= last


def occupied(made: Plan, kv_heads: int, multiprocessors: int) -> float:
    """Work over the time that 2 * multiprocessors slots take for it, longest first: 1 is perfect."""
    lengths = sorted(made.tiles[:, LAST] - made.tiles[:, FIRST], reverse=True)
    slots = [0] * (2 * multiprocessors)
    for length in np.repeat(lengths, kv_heads):
        slots[slots.index(min(slots))] += int(length)
    return sum(slots) / (len(slots) * max(slots))


@pytest.mark.parametrize(
    "queries,keys,heads", [(1560, 14040, 12), (4680, 18720, 12), (4680, 32760, 12), (32, 589, 16)]
)
def test_policy_keeps_the_gpu_busy(queries: int, keys: int, heads: int) -> None:
    rows = 112 if queries > 32 else 32
    entries = -(-keys // rows)
    valid = [rows] * (entries - 1) + [keys - rows * (entries - 1)]
    table = FrameTable.build([queries], [list(range(entries))], [valid])
    made = plan(table, heads, heads, 132)
    if queries == 32:
        assert made.tile_rows == 64 and made.parts >= 3
    else:
        assert made.tile_rows == 128
        assert occupied(made, heads, 132) >= 0.85


def test_policy_leaves_many_short_tiles_whole() -> None:
    table = FrameTable.build([32] * 64, [list(range(19))] * 64, [[32] * 18 + [13]] * 64)
    made = plan(table, 16, 16, 132)
    assert made.parts == 0 and made.tile_rows == 64


def test_workspace_holds_every_part() -> None:
    table = FrameTable.build([32], [list(range(40))], [[32] * 40])
    made = plan(table, 16, 8, 132)
    module = native()
    assert module is not None and made.parts > 0
    sizes = (0, 0, 0, 0, made.tile_rows, made.parts)
    assert module.attention_partial_floats(sizes, 8, 72) == made.parts * 8 * made.tile_rows * (72 + 1)


def test_edited_table_is_refused() -> None:
    table = FrameTable.build([32], [[0, 1]], [[32, 32]])
    table.seen[0] = 99
    with pytest.raises(IndexError, match="does not fit"):
        plan(table, 1, 1, 132)


@settings(max_examples=examples(40), deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 16, 132]))
def test_room_is_added_behind_and_does_nothing(seed: int, multiprocessors: int) -> None:
    """Tiles and merges without rows, and at most a quarter more of them: each is a thread block to start."""
    table = random_table(seed)
    made, room = plan(table, 4, 2, multiprocessors), plan(table, 4, 2, multiprocessors, with_room=True)
    assert room.tile_rows == made.tile_rows and (room.limits == made.limits).all()
    for own, more in ((made.tiles, room.tiles), (made.merges, room.merges), (made.blocks, room.blocks)):
        assert (more[: len(own)] == own).all()
    for own, more in ((made.tiles, room.tiles), (made.merges, room.merges)):
        assert len(own) <= len(more) <= 1.25 * len(own)
    added = room.tiles[len(made.tiles) :]
    assert (added[:, PART] == -1).all() and not added[:, :PART].any()
    assert not room.merges[len(made.merges) :].any()
    assert made.parts <= room.parts <= 2 * made.parts and len(room.blocks) <= 2 * len(made.blocks)


def test_room_makes_the_sizes_of_similar_tables_equal() -> None:
    """One more page per frame, from 2 to 60 pages: 59 tables, few sizes."""
    sizes = set()
    for pages in range(2, 61):
        table = FrameTable.build([32], [list(range(pages))], [[32] * pages])
        made = plan(table, 16, 16, 132, with_room=True)
        sizes.add((len(made.tiles), len(made.merges), len(made.blocks), made.tile_rows, made.parts))
    assert len(sizes) < 16
