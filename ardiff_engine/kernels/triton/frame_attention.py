# SPDX-License-Identifier: Apache-2.0
"""Forward of frame attention: o = softmax(scale q k^T + bias) v over page lists, and lse. Any GPU of Triton.

q [T, H, D]; pages [P, Hkv, R, D]; o [T, H, D]; lse float32 [T, H]. float32, bfloat16 or float16; products,
softmax and sums in float32.

Who runs what: program (slot, head) owns `queries` tokens of one group (`query_tile`), walks the group's
entries in table order, `keys` rows of a page per step, with an online softmax in base 2. Entries that all its
tokens see come first and need no visibility mask; entries that only some see follow.

Cost: 4 D FLOPs per query-key pair and head, K and V once per query tile. 4680 x 18720 keys, 12 heads,
D = 128: 0.54 TFLOP, 0.55 ms at 989 TFLOP/s (H100, bf16). Not yet run on a GPU.

Assumes: the last dimension dense; D <= 256; int32 tables of one device. Never read: rows beyond `valid`,
pages that no list names, pages out of range (they count as empty and set the device's error bit).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.frame_attention_tile import (
    LOG2E,
    accumulate,
    dot_dtype,
    entries_seen,
    entry_page,
    forward_tile,
    load_rows,
    product,
    query_slots,
    query_tile,
    report_bad_entries,
    store_rows,
)
from ardiff_engine.kernels.triton.launch import dense_rows, on
from ardiff_engine.ops.cuda_launch import error_bits

Tensor = torch.Tensor
_LN2 = tl.constexpr(0.6931471805599453)


def run(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor,
    pages: Tensor, valid: Tensor, seen: Tensor, bias: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(o, lse); see `ardiff_engine.ops.frame_attention`."""
    q, k_pages, v_pages = dense_rows(q), dense_rows(k_pages), dense_rows(v_pages)
    tokens, heads, dim = q.shape
    groups, page_rows = group_ptr.numel() - 1, k_pages.shape[2]
    tile = forward_tile(tokens, groups, page_rows, dim, q.dtype)
    o = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if tokens == 0:
        return o, lse
    with on(q):
        _forward[query_slots(tokens, groups, tile.queries), heads](
            q, k_pages, v_pages, o, lse, frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias,
            error_bits(q.device), groups, k_pages.shape[0], scale * LOG2E,
            Q_TOKEN=q.stride(0), Q_HEAD=q.stride(1),
            K_PAGE=k_pages.stride(0), K_HEAD=k_pages.stride(1), K_ROW=k_pages.stride(2),
            V_PAGE=v_pages.stride(0), V_HEAD=v_pages.stride(1), V_ROW=v_pages.stride(2),
            HEADS=heads, SHARE=heads // k_pages.shape[1], DIM=dim, PAGE_ROWS=page_rows,
            QUERIES=tile.queries, KEYS=tile.keys, PAGE_TILES=tile.page_tiles, MAIN=tile.main,
            REST=tile.rest, DOT=dot_dtype(q.dtype), HAS_BIAS=bias is not None,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return o, lse


# Strides are compile-time: a row stride of 72 elements is known to be a multiple of 16 bytes only then, and
# without that every load would be 2 bytes wide.
@triton.jit
def _forward(
    q, k, v, o, lse, frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias, errors, num_groups, num_pages,
    scale, Q_TOKEN: tl.constexpr, Q_HEAD: tl.constexpr, K_PAGE: tl.constexpr, K_HEAD: tl.constexpr,
    K_ROW: tl.constexpr, V_PAGE: tl.constexpr, V_HEAD: tl.constexpr, V_ROW: tl.constexpr,
    HEADS: tl.constexpr, SHARE: tl.constexpr, DIM: tl.constexpr, PAGE_ROWS: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PAGE_TILES: tl.constexpr, MAIN: tl.constexpr,
    REST: tl.constexpr, DOT: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    group, first, end = query_tile(frame_ptr, group_ptr, num_groups, QUERIES)
    if first >= end:
        return
    head = tl.program_id(1)
    tokens = first + tl.arange(0, QUERIES)
    exists = tokens < end
    entries = tl.load(page_ptr + group)
    count = entries_seen(
        frame_ptr, seen, tl.load(group_ptr + group), tl.load(group_ptr + group + 1),
        tl.load(page_ptr + group + 1) - entries, tokens,
    )  # fmt: skip
    most = tl.max(count, 0)
    shared = tl.min(tl.where(exists, count, most), 0)

    wide = tokens.to(tl.int64)
    q += head.to(tl.int64) * Q_HEAD  # may exceed 2^31, as the offsets of pages may
    queries = load_rows(q, wide, exists, Q_TOKEN, 0, MAIN, DIM)
    queries_rest = queries
    total_rest = tl.zeros([QUERIES, 16], tl.float32)
    if REST > 0:
        queries_rest = load_rows(q, wide, exists, Q_TOKEN, MAIN, REST, DIM)
        total_rest = tl.zeros([QUERIES, REST], tl.float32)
    total = tl.zeros([QUERIES, MAIN], tl.float32)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    weight = tl.zeros([QUERIES], tl.float32)
    k += (head // SHARE).to(tl.int64) * K_HEAD
    v += (head // SHARE).to(tl.int64) * V_HEAD
    for step in range(0, shared * PAGE_TILES):
        total, total_rest, largest, weight = _absorb(
            total, total_rest, largest, weight, queries, queries_rest, count, step, entries,
            k, v, pages, valid, bias, num_pages, scale,
            K_PAGE, K_ROW, V_PAGE, V_ROW, DIM, PAGE_ROWS, KEYS, PAGE_TILES, MAIN, REST, DOT, HAS_BIAS, False,
        )  # fmt: skip
    for step in range(shared * PAGE_TILES, most * PAGE_TILES):
        total, total_rest, largest, weight = _absorb(
            total, total_rest, largest, weight, queries, queries_rest, count, step, entries,
            k, v, pages, valid, bias, num_pages, scale,
            K_PAGE, K_ROW, V_PAGE, V_ROW, DIM, PAGE_ROWS, KEYS, PAGE_TILES, MAIN, REST, DOT, HAS_BIAS, True,
        )  # fmt: skip

    # An empty view has weight 0 and largest -inf: o = 0, lse = -inf.
    inverse = 1.0 / tl.where(weight == 0.0, 1.0, weight)
    o += head * DIM
    store_rows(o, wide, exists, total * inverse[:, None], HEADS * DIM, 0, MAIN, DIM)
    if REST > 0:
        store_rows(o, wide, exists, total_rest * inverse[:, None], HEADS * DIM, MAIN, REST, DIM)
    tl.store(lse + wide * HEADS + head, (largest + tl.log2(weight)) * _LN2, mask=exists)
    if head == 0:
        report_bad_entries(pages, valid, entries, most, num_pages, errors, PAGE_ROWS)


@triton.jit
def _absorb(
    total, total_rest, largest, weight, queries, queries_rest, count, step, entries,
    k, v, pages, valid, bias, num_pages, scale,
    K_PAGE: tl.constexpr, K_ROW: tl.constexpr, V_PAGE: tl.constexpr, V_ROW: tl.constexpr, DIM: tl.constexpr,
    PAGE_ROWS: tl.constexpr, KEYS: tl.constexpr, PAGE_TILES: tl.constexpr, MAIN: tl.constexpr,
    REST: tl.constexpr, DOT: tl.constexpr, HAS_BIAS: tl.constexpr, PARTLY_SEEN: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: KEYS rows of entry step // PAGE_TILES."""
    page, rows, extra = entry_page(
        pages, valid, bias, entries + step // PAGE_TILES, num_pages, PAGE_ROWS, HAS_BIAS
    )
    row = (step % PAGE_TILES) * KEYS + tl.arange(0, KEYS)
    exists = row < rows
    k += page * K_PAGE
    v += page * V_PAGE
    keys = load_rows(k, row, exists, K_ROW, 0, MAIN, DIM)
    keys_rest = keys
    if REST > 0:
        keys_rest = load_rows(k, row, exists, K_ROW, MAIN, REST, DIM)
    logits = product(queries, keys, queries_rest, keys_rest, DOT, REST) * scale + extra
    visible = exists[None, :]
    sees = count > step // PAGE_TILES
    if PARTLY_SEEN:
        visible = visible & sees[:, None]
    logits = tl.where(visible, logits, float("-inf"))
    peak = tl.maximum(largest, tl.max(logits, 1))
    # Where nothing was seen yet, -inf - -inf would be NaN.
    origin = tl.where(peak == float("-inf"), 0.0, peak)
    p = tl.exp2(logits - origin[:, None])
    decay = tl.exp2(largest - origin)
    weight = weight * decay + tl.sum(p, 1)
    values = load_rows(v, row, exists, V_ROW, 0, MAIN, DIM)
    updated = accumulate(p, values, total * decay[:, None], DOT)
    updated_rest = total_rest
    if REST > 0:
        values_rest = load_rows(v, row, exists, V_ROW, MAIN, REST, DIM)
        updated_rest = accumulate(p, values_rest, total_rest * decay[:, None], DOT)
    if PARTLY_SEEN:
        # A page that holds NaN must not reach the tokens that do not see it, and 0 * NaN is NaN.
        updated = tl.where(sees[:, None], updated, total)
        if REST > 0:
            updated_rest = tl.where(sees[:, None], updated_rest, total_rest)
    return updated, updated_rest, peak, weight
