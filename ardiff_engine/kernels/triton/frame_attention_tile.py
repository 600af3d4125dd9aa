# SPDX-License-Identifier: Apache-2.0
"""What the three kernels of frame attention share: tile sizes, finding a tile's tokens and views, loads.

Nothing here is computed on the host from a table's values: the tables may live in device buffers that a
captured graph rewrites between replays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ardiff_engine.errors import TensorError, explain
from ardiff_engine.kernels.triton.launch import BAD_VIEW, report

LOG2E = 1.4426950408889634
MAX_DIM = 256  # above 128, which no model of this family has, registers spill: correct, but slow
_LOG2E = tl.constexpr(LOG2E)
_GROUPS_AT_ONCE = tl.constexpr(128)
_FRAMES_AT_ONCE = tl.constexpr(16)
_ENTRIES_AT_ONCE = tl.constexpr(32)
_MOST_32_BIT_STRIDE = tl.constexpr(2**16)
_NEVER = tl.constexpr(2**31 - 1)


@dataclass(frozen=True, slots=True)
class Tile:
    """Compile-time sizes. The head dimension is `main` + `rest` columns, each a power of two: 72 is 64 + 16
    (of which 8 are masked), not 128, because padded columns cost as much as real ones."""

    queries: int
    keys: int
    """Rows of a page per step; a page takes `page_tiles` steps."""
    page_tiles: int
    main: int
    rest: int
    warps: int
    stages: int


# What bounds the sizes is the register file: `tools/triton_check.py` fails where one of these spills. In half
# precision one warp owns 16 rows of the left operand (Triton lays chained products out that way, further
# warps would repeat the work of the first). float32 products run without tensor cores and hold whole operand
# rows in registers, so their tiles are small.


def forward_tile(tokens: int, groups: int, page_rows: int, dim: int, dtype: torch.dtype) -> Tile:
    """Query tiles never cross groups, so they are as large as an average group, up to 128 tokens."""
    if dtype == torch.float32:
        queries, keys, warps = (32, 32, 4) if dim <= 64 else (16, 16, 4) if dim <= 80 else (32, 16, 8)
        return _tile(_fit(tokens, groups, queries), keys, page_rows, dim, warps, stages=2)
    queries = _fit(tokens, groups, 128 if dim <= 128 else 32)
    return _tile(queries, 64 if dim <= 96 else 32, page_rows, dim, queries // 16, stages=2)


def query_gradient_tile(tokens: int, groups: int, page_rows: int, dim: int, dtype: torch.dtype) -> Tile:
    if dtype == torch.float32:
        return _tile(_fit(tokens, groups, 32 if dim <= 96 else 16), 16, page_rows, dim, warps=8, stages=1)
    queries = _fit(tokens, groups, 64)
    return _tile(queries, 32 if dim <= 96 or queries == 64 else 16, page_rows, dim, queries // 16, stages=1)


def page_gradient_tile(page_rows: int, dim: int, dtype: torch.dtype) -> Tile:
    """Two sums of [keys, dim] stay in registers, which leaves room for few queries at a time."""
    if dtype == torch.float32:
        queries, warps = (16, 4) if dim <= 64 else (32 if dim <= 80 else 16, 8)
        return _tile(queries, 32, page_rows, dim, warps, stages=1)
    keys = _keys(page_rows, 64)
    return _tile(32 if dim <= 64 and keys == 64 else 16, keys, page_rows, dim, keys // 16, stages=1)


def _tile(queries: int, most_keys: int, page_rows: int, dim: int, warps: int, stages: int) -> Tile:
    if dim > MAX_DIM:
        raise TensorError(
            explain(
                "head dimension of frame_attention on Triton",
                got=dim,
                expected=f"at most {MAX_DIM}",
                fix="Set ARDIFF_BACKEND=reference for this call.",
            )
        )
    main, rest = split_dim(dim)
    keys = _keys(page_rows, most_keys)
    return Tile(queries, keys, -(-page_rows // keys), main, rest, warps, stages)


def _fit(tokens: int, groups: int, most: int) -> int:
    return max(16, min(most, int(triton.next_power_of_2(max(tokens // max(groups, 1), 1)))))


def _keys(page_rows: int, most: int) -> int:
    """The largest tile that pads a page by at most a quarter."""
    for keys in (64, 32):
        if keys <= most and 4 * (-(-page_rows // keys) * keys) <= 5 * page_rows:
            return keys
    return 16


def split_dim(dim: int) -> tuple[int, int]:
    """(main, rest) with main + rest >= dim; rest is 0 where one power of two is as small."""
    whole = max(16, triton.next_power_of_2(dim))
    main = whole if whole == dim or whole == 16 else whole // 2
    rest = max(16, triton.next_power_of_2(dim - main)) if dim > main else 0
    return (whole, 0) if main + rest >= whole else (main, rest)


def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """Operands of the matrix products. Triton's interpreter multiplies bfloat16 as if it were integers."""
    if dtype == torch.bfloat16:
        return tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16
    return tl.float16 if dtype == torch.float16 else tl.float32


def query_slots(tokens: int, groups: int, queries: int) -> int:
    """How many programs cover all groups with tiles of `queries` tokens; see `query_tile`."""
    return tokens // queries + groups


@triton.jit
def query_tile(frame_ptr, group_ptr, num_groups, QUERIES: tl.constexpr):
    """(group, its first token of this program, end of the group); empty where first >= end.

    Group g starts at slot start(g) // QUERIES + g. That needs no prefix sum over tiles, leaves every group
    enough slots, and at most one of them per group empty.
    """
    slot = tl.program_id(0)
    group = -1
    for base in range(0, num_groups, _GROUPS_AT_ONCE):
        g = base + tl.arange(0, _GROUPS_AT_ONCE)
        exists = g < num_groups
        start = tl.load(frame_ptr + tl.load(group_ptr + g, mask=exists, other=0), mask=exists, other=0)
        group += tl.sum((exists & (start // QUERIES + g <= slot)).to(tl.int32), 0)
    start = tl.load(frame_ptr + tl.load(group_ptr + group))
    end = tl.load(frame_ptr + tl.load(group_ptr + group + 1))
    return group, start + (slot - start // QUERIES - group) * QUERIES, end


@triton.jit
def entries_seen(frame_ptr, seen, first_frame, end_frame, limit, tokens):
    """How many entries of the group's list each token sees; 0 for tokens outside the frames."""
    count = tokens * 0
    for base in range(first_frame, end_frame, _FRAMES_AT_ONCE):
        f = base + tl.arange(0, _FRAMES_AT_ONCE)
        exists = f < end_frame
        start = tl.load(frame_ptr + f, mask=exists, other=0)
        end = tl.load(frame_ptr + f + 1, mask=exists, other=0)
        listed = tl.load(seen + f, mask=exists, other=0)
        owner = (tokens[:, None] >= start[None, :]) & (tokens[:, None] < end[None, :])
        count += tl.sum(tl.where(owner, listed[None, :], 0), 1)
    return tl.minimum(count, limit)


@triton.jit
def tokens_seeing(frame_ptr, seen, first_frame, end_frame, entry):
    """The span of tokens [first, end) whose frames see entry `entry` of the group's list."""
    first = _NEVER
    last = 0
    for base in range(first_frame, end_frame, _FRAMES_AT_ONCE):
        f = base + tl.arange(0, _FRAMES_AT_ONCE)
        exists = f < end_frame
        start = tl.load(frame_ptr + f, mask=exists, other=0)
        end = tl.load(frame_ptr + f + 1, mask=exists, other=0)
        sees = (tl.load(seen + f, mask=exists, other=0) > entry) & (end > start)
        first = tl.minimum(first, tl.min(tl.where(sees, start, _NEVER), 0))
        last = tl.maximum(last, tl.max(tl.where(sees, end, 0), 0))
    return first, last


@triton.jit
def entry_page(pages, valid, bias, entry, num_pages, PAGE_ROWS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """(page, rows that exist, bias in log2). A page outside the pool has no rows: it is never read."""
    page = tl.load(pages + entry).to(tl.int64)
    rows = tl.minimum(tl.load(valid + entry), PAGE_ROWS)
    rows = tl.where((page >= 0) & (page < num_pages), rows, 0)
    extra = 0.0
    if HAS_BIAS:
        extra = tl.load(bias + entry) * _LOG2E
    return page, rows, extra


@triton.jit
def report_bad_entries(pages, valid, first, count, num_pages, errors, PAGE_ROWS: tl.constexpr):
    """Reports pages and rows outside the pool. Not in `entry_page`: the loop over entries is the hot one."""
    for base in range(0, count, _ENTRIES_AT_ONCE):
        entry = base + tl.arange(0, _ENTRIES_AT_ONCE)
        listed = entry < count
        page = tl.load(pages + first + entry, mask=listed, other=0)
        rows = tl.load(valid + first + entry, mask=listed, other=0)
        report(errors, (page < 0) | (page >= num_pages) | (rows < 0) | (rows > PAGE_ROWS), BAD_VIEW)


@triton.jit
def load_rows(
    base, rows, exists, STRIDE: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr
):
    """Columns FIRST .. FIRST + WIDTH of [rows, DIM]; 0 where a row does not exist or a column is padding."""
    if STRIDE > _MOST_32_BIT_STRIDE:
        rows = rows.to(tl.int64)
    column = FIRST + tl.arange(0, WIDTH)
    mask = exists[:, None]
    if FIRST + WIDTH > DIM:
        mask = mask & (column < DIM)[None, :]
    return tl.load(base + rows[:, None] * STRIDE + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(
    base, rows, exists, value, STRIDE: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr,
    DIM: tl.constexpr,
):  # fmt: skip
    column = FIRST + tl.arange(0, WIDTH)
    mask = exists[:, None] & (column < DIM)[None, :]
    value = value.to(base.dtype.element_ty)
    tl.store(base + rows[:, None] * STRIDE + column[None, :], value, mask=mask)


@triton.jit
def product(a, b, a_rest, b_rest, DOT: tl.constexpr, REST: tl.constexpr):
    """a [M, main | rest] times b [N, main | rest] transposed: [M, N] in float32."""
    total = tl.dot(a.to(DOT), tl.trans(b.to(DOT)), input_precision="ieee")
    if REST > 0:
        total = tl.dot(a_rest.to(DOT), tl.trans(b_rest.to(DOT)), total, input_precision="ieee")
    return total


@triton.jit
def accumulate(weights, rows, total, DOT: tl.constexpr):
    """total + weights [M, N] rows [N, columns]"""
    return tl.dot(weights.to(DOT), rows.to(DOT), total, input_precision="ieee")
