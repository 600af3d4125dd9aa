# SPDX-License-Identifier: Apache-2.0
"""FrameTable: what it holds, and that every broken table is refused with a typed error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ardiff_engine.errors import ArdiffError, ConfigError, PageTableError
from ardiff_engine.ops.frame_table import FrameTable


def test_build_lays_out_groups_frames_and_entries() -> None:
    table = FrameTable.build([5, [2, 3]], [[4, 0], [7]], [[16, 9], [12]], [[1], [1, 0]], [[0.0, -1.0], [2.0]])
    assert table.frame_ptr.tolist() == [0, 5, 7, 10]
    assert table.group_ptr.tolist() == [0, 1, 3]
    assert table.page_ptr.tolist() == [0, 2, 3]
    assert table.pages.tolist() == [4, 0, 7]
    assert table.valid.tolist() == [16, 9, 12]
    assert table.seen.tolist() == [1, 1, 0]
    assert table.bias is not None and table.bias.tolist() == [0.0, -1.0, 2.0]
    assert (table.num_tokens, table.num_groups, table.pool_pages, table.page_rows) == (10, 2, 8, 16)


def test_seen_defaults_to_the_whole_list() -> None:
    assert FrameTable.build([[1, 1]], [[0, 1, 2]], [[1, 1, 1]]).seen.tolist() == [3, 3]
    assert FrameTable.build([4, 4], [[0, 1], [2]], [[1, 1], [1]], [1, None]).seen.tolist() == [1, 1]


def test_empty_tables_and_empty_views() -> None:
    nothing = FrameTable.build([], [], [])
    assert (nothing.num_tokens, nothing.num_groups, nothing.pool_pages, nothing.page_rows) == (0, 0, 0, 0)
    assert FrameTable.build([3], [[]], [[]]).seen.tolist() == [0]


def test_moving_keeps_the_facts() -> None:
    table = FrameTable.build([2], [[5]], [[3]])
    assert table.to("cpu") is table
    moved = table.to("meta")
    assert moved.device.type == "meta" and moved.num_tokens == 2 and moved.pool_pages == 6
    assert table.device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1], [[0], [1]], [[1], [1]]), "number of groups in pages"),
        (([1], [[0, 1]], [[1]]), "length of valid"),
        (([1], [[-1]], [[1]]), "page ids"),
        (([1], [[0]], [[-1]]), "valid"),
        (([1], [[0]], [[1]], [[2]]), "seen of query frame 0"),
        (([1], [[0]], [[1]], [[-1]]), "seen"),
        (([[1, 1]], [[0]], [[1]], [[1]]), "length of seen"),
        (([1], [[0]], [[1]], None, [[0.0, 0.0]]), "length of bias"),
        (([1], [[0]], [[1]], None, [[float("nan")]]), "bias"),
        (([-1], [[0]], [[1]]), "query_tokens"),
        (([1], [[2**31]], [[1]]), "32-bit"),
        (([2**30, 2**30], [[0], [0]], [[1], [1]]), "2\\^31"),
    ],
)
def test_build_refuses(arguments: tuple, words: str) -> None:
    with pytest.raises(PageTableError, match=words):
        FrameTable.build(*arguments)


def _ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    "changed",
    [
        {"frame_ptr": _ints(1, 2)},
        {"frame_ptr": _ints(0, 2, 1)},
        {"group_ptr": _ints(0, 2)},
        {"page_ptr": _ints(0, 3)},
        {"pages": torch.tensor([0, 1])},
        {"pages": _ints(0, 1).reshape(1, 2)},
        {"valid": _ints(1, 1).to("meta")},
        {"bias": _ints(0, 0)},
    ],
)
def test_the_constructor_refuses(changed: dict[str, torch.Tensor]) -> None:
    good = {"frame_ptr": _ints(0, 2), "group_ptr": _ints(0, 1), "page_ptr": _ints(0, 2), "pages": _ints(0, 1),
            "valid": _ints(1, 1), "seen": _ints(2)}  # fmt: skip
    FrameTable(**good)
    with pytest.raises(ConfigError):
        FrameTable(**{**good, **changed})


small = st.integers(-1, 4)


@given(
    st.lists(st.lists(small, max_size=3), max_size=3),
    st.lists(st.lists(small, max_size=3), max_size=3),
    st.lists(st.lists(small, max_size=3), max_size=3),
    st.none() | st.lists(st.lists(small, max_size=3), max_size=3),
)
def test_any_input_builds_a_sound_table_or_a_typed_error(
    tokens: list[list[int]], pages: list[list[int]], valid: list[list[int]], seen: list[list[int]] | None
) -> None:
    sound = (
        len(tokens) == len(pages) == len(valid)
        and (seen is None or len(seen) == len(tokens))
        and all(len(p) == len(v) for p, v in zip(pages, valid, strict=True))
        and min([n for row in [*tokens, *pages, *valid] for n in row], default=0) >= 0
        and (
            seen is None
            or all(
                len(s) == len(t) and all(0 <= n <= len(p) for n in s)
                for s, t, p in zip(seen, tokens, pages, strict=True)
            )
        )
    )
    if not sound:
        with pytest.raises(ArdiffError):
            FrameTable.build(tokens, pages, valid, seen)
        return
    table = FrameTable.build(tokens, pages, valid, seen)
    assert table.num_tokens == sum(map(sum, tokens))
    assert table.pages.tolist() == [p for row in pages for p in row]
    for g in range(table.num_groups):
        frames = range(int(table.group_ptr[g]), int(table.group_ptr[g + 1]))
        assert len(frames) == len(tokens[g])
        assert all(int(table.seen[f]) <= len(pages[g]) for f in frames)


def test_integers_of_numpy_and_torch() -> None:
    table = FrameTable.build(
        [np.int64(3), np.array([1, 2])], [[np.int32(4)], torch.tensor([0, 1])], [[3], np.array([2, 2])],
        [np.int64(1), (1, np.int64(2))],
    )  # fmt: skip
    assert table.frame_ptr.tolist() == [0, 3, 4, 6]
    assert table.pages.tolist() == [4, 0, 1] and table.valid.tolist() == [3, 2, 2]
    assert table.seen.tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1], [0], [[1]]), "pages"),
        (([1], [3.0], [[1]]), "pages"),
        (([1], [["0"]], [[1]]), "pages"),
        (([1], [[1.0]], [[1]]), "pages"),
        (([1], [np.array([0.5])], [[1]]), "pages"),
        (([1], [[0]], [[3.7]]), "valid"),
        (([1], [[0]], [3]), "valid"),
        (([1.5], [[0]], [[1]]), "query_tokens"),
        (([[1.5]], [[0]], [[1]]), "query_tokens"),
        (([None], [[0]], [[1]]), "query_tokens"),
        (([[2**70]], [[0]], [[1]]), "query_tokens"),
        ((1, [[0]], [[1]]), "query_tokens"),
        (([1], [[0]], [[1]], [0.5]), "seen"),
        (([1], [[0]], [[1]], [[0.5]]), "seen"),
        (([1], [[0]], [[1]], None, [0.0]), "bias"),
        (([1], [[0]], [[1]], None, [["a"]]), "bias"),
    ],
)
def test_build_never_truncates(arguments: tuple, words: str) -> None:
    with pytest.raises(PageTableError, match=words):
        FrameTable.build(*arguments)


def test_flat_lists_make_the_table_that_lists_of_lists_make() -> None:
    built = FrameTable.build([[5, 3], [4]], [[2, 0, 7], []], [[8, 8, 1], []], [[1, 3], [0]])
    flat = FrameTable.from_flat([5, 3, 4], [2, 1], [3, 0], [2, 0, 7], [8, 8, 1], [1, 3, 0])
    for name in ("frame_ptr", "group_ptr", "page_ptr", "pages", "valid", "seen"):
        assert torch.equal(getattr(flat, name), getattr(built, name)), name
    assert (flat.num_tokens, flat.num_groups, flat.pool_pages, flat.page_rows) == (12, 2, 8, 8)
    with pytest.raises(PageTableError, match="seen"):
        FrameTable.from_flat([5], [1], [1], [0], [8], [2])


def test_other_pages_in_the_same_views() -> None:
    table = FrameTable.build([[5, 3], [4]], [[2, 0, 7], [1]], [[8, 8, 1], [8]], [[1, 3], [1]])
    other = table.with_pages(torch.tensor([9, 4, 0, 3], dtype=torch.int32))
    assert other.pages.tolist() == [9, 4, 0, 3] and other.pool_pages == 10
    assert table.pages.tolist() == [2, 0, 7, 1] and table.pool_pages == 8
    assert other.seen is table.seen
    empty = FrameTable.build([1], [[]], [[]])
    assert empty.with_pages(torch.zeros(0, dtype=torch.int32)).pool_pages == 0
    for bad in (-1, -(2**31)):
        with pytest.raises(PageTableError, match=str(bad)):
            table.with_pages(torch.tensor([9, bad, 0, 3], dtype=torch.int32))
    for wrong in (torch.zeros(3, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)):
        with pytest.raises(ConfigError, match="with_pages"):
            table.with_pages(wrong)
