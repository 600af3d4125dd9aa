# SPDX-License-Identifier: Apache-2.0
"""Backward of frame attention: dq, dk and dv, the same bits in every run. Any GPU of Triton.

    P = exp(S - lse), delta = rowsum(do * o) - dlse, dS = P * (do v^T - delta)
    dq = scale dS k,  dk = scale dS^T q,  dv = P^T do

Who runs what: `_query_gradients` has the forward's programs, one per query tile and head; it also leaves
delta and the number of entries that each token sees. `_page_gradients` has one program per page tile and kv
head: it walks the entries that list the page in table order, and for each the tokens that see it. Sums live
in registers of one program: no atomics, and pages that nobody sees get zeros.

Cost: 14 D FLOPs per query-key pair and head, S and dP are computed twice instead of adding dq by atomics.
16 x 32 tokens, batch 64, 16 heads, D = 72, block-causal: 0.14 TFLOP, 0.15 ms at 989 TFLOP/s (H100, bf16).
Not yet run on a GPU.

Assumes and never reads: as in frame_attention.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ardiff_engine.kernels.triton.frame_attention_tile import (
    LOG2E,
    Tile,
    accumulate,
    dot_dtype,
    entries_seen,
    entry_page,
    load_rows,
    page_gradient_tile,
    product,
    query_gradient_tile,
    query_slots,
    query_tile,
    store_rows,
    tokens_seeing,
)
from ardiff_engine.kernels.triton.inverse_index import InverseIndexCache
from ardiff_engine.kernels.triton.launch import dense_rows, on

Tensor = torch.Tensor
_LOG2E = tl.constexpr(LOG2E)
_page_users = InverseIndexCache()


def run(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k_pages: Tensor, v_pages: Tensor, o: Tensor, lse: Tensor,
    frame_ptr: Tensor, group_ptr: Tensor, page_ptr: Tensor, pages: Tensor, valid: Tensor, seen: Tensor,
    bias: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk_pages, dv_pages); see `ardiff_engine.ops.frame_attention`."""
    q, k_pages, v_pages = dense_rows(q), dense_rows(k_pages), dense_rows(v_pages)
    dout, o, lse = dout.contiguous(), o.contiguous(), lse.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    tokens, heads, dim = q.shape
    num_pages, kv_heads, page_rows, _ = k_pages.shape
    groups = group_ptr.numel() - 1
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    dk, dv = (torch.empty(k_pages.shape, dtype=q.dtype, device=q.device) for _ in range(2))
    if tokens == 0:
        return dq, dk.zero_(), dv.zero_()
    delta = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    count = torch.empty(tokens, dtype=torch.int32, device=q.device)
    users = _page_users.get(pages, num_pages)
    with on(q):
        tile = query_gradient_tile(tokens, groups, page_rows, dim, q.dtype)
        _query_gradients[query_slots(tokens, groups, tile.queries), heads](
            q, k_pages, v_pages, o, lse, dout, dlse, dq, delta, count,
            frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias,
            groups, num_pages, scale * LOG2E, scale, HAS_DLSE=dlse is not None,
            HAS_BIAS=bias is not None, **_layout(q, k_pages, v_pages, tile),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        tile = page_gradient_tile(page_rows, dim, q.dtype)
        _page_gradients[num_pages * tile.page_tiles, kv_heads](
            q, k_pages, v_pages, lse, dout, dk, dv, delta, count, users.order, users.offsets,
            frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias,
            groups, num_pages, scale * LOG2E, scale, KV_HEADS=kv_heads,
            HAS_BIAS=bias is not None, **_layout(q, k_pages, v_pages, tile),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return dq, dk, dv


def _layout(q: Tensor, k_pages: Tensor, v_pages: Tensor, tile: Tile) -> dict[str, object]:
    """The compile-time arguments that both kernels take."""
    return {
        "Q_TOKEN": q.stride(0), "Q_HEAD": q.stride(1),
        "K_PAGE": k_pages.stride(0), "K_HEAD": k_pages.stride(1), "K_ROW": k_pages.stride(2),
        "V_PAGE": v_pages.stride(0), "V_HEAD": v_pages.stride(1), "V_ROW": v_pages.stride(2),
        "HEADS": q.shape[1], "SHARE": q.shape[1] // k_pages.shape[1], "DIM": q.shape[2],
        "PAGE_ROWS": k_pages.shape[2], "QUERIES": tile.queries, "KEYS": tile.keys,
        "PAGE_TILES": tile.page_tiles, "MAIN": tile.main, "REST": tile.rest, "DOT": dot_dtype(q.dtype),
    }  # fmt: skip


@triton.jit
def _query_gradients(
    q, k, v, o, lse, dout, dlse, dq, delta, token_count,
    frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias, num_groups, num_pages, scale_log2, scale,
    HAS_DLSE: tl.constexpr, HAS_BIAS: tl.constexpr, Q_TOKEN: tl.constexpr, Q_HEAD: tl.constexpr,
    K_PAGE: tl.constexpr, K_HEAD: tl.constexpr, K_ROW: tl.constexpr, V_PAGE: tl.constexpr,
    V_HEAD: tl.constexpr, V_ROW: tl.constexpr, HEADS: tl.constexpr, SHARE: tl.constexpr, DIM: tl.constexpr,
    PAGE_ROWS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PAGE_TILES: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, DOT: tl.constexpr,
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
    if head == 0:
        tl.store(token_count + tokens, count, mask=exists)

    wide = tokens.to(tl.int64)
    q += head.to(tl.int64) * Q_HEAD  # may exceed 2^31, as the offsets of pages may
    o += head * DIM
    dout += head * DIM
    dq += head * DIM
    queries = load_rows(q, wide, exists, Q_TOKEN, 0, MAIN, DIM)
    grads = load_rows(dout, wide, exists, HEADS * DIM, 0, MAIN, DIM)
    outputs = load_rows(o, wide, exists, HEADS * DIM, 0, MAIN, DIM)
    row_delta = tl.sum(grads.to(tl.float32) * outputs.to(tl.float32), 1)
    queries_rest = queries
    grads_rest = grads
    total_rest = tl.zeros([QUERIES, 16], tl.float32)
    if REST > 0:
        queries_rest = load_rows(q, wide, exists, Q_TOKEN, MAIN, REST, DIM)
        grads_rest = load_rows(dout, wide, exists, HEADS * DIM, MAIN, REST, DIM)
        outputs_rest = load_rows(o, wide, exists, HEADS * DIM, MAIN, REST, DIM)
        row_delta += tl.sum(grads_rest.to(tl.float32) * outputs_rest.to(tl.float32), 1)
        total_rest = tl.zeros([QUERIES, REST], tl.float32)
    at = wide * HEADS + head
    if HAS_DLSE:
        row_delta -= tl.load(dlse + at, mask=exists, other=0.0)
    tl.store(delta + at, row_delta, mask=exists)

    sums = _finite(tl.load(lse + at, mask=exists, other=0.0)) * _LOG2E
    total = tl.zeros([QUERIES, MAIN], tl.float32)
    k += (head // SHARE).to(tl.int64) * K_HEAD
    v += (head // SHARE).to(tl.int64) * V_HEAD
    for step in range(0, tl.max(count, 0) * PAGE_TILES):
        page, rows, extra = entry_page(
            pages, valid, bias, entries + step // PAGE_TILES, num_pages, PAGE_ROWS, HAS_BIAS
        )
        row = (step % PAGE_TILES) * KEYS + tl.arange(0, KEYS)
        real = row < rows
        page_k = k + page * K_PAGE
        page_v = v + page * V_PAGE
        keys = load_rows(page_k, row, real, K_ROW, 0, MAIN, DIM)
        values = load_rows(page_v, row, real, V_ROW, 0, MAIN, DIM)
        keys_rest = keys
        values_rest = values
        if REST > 0:
            keys_rest = load_rows(page_k, row, real, K_ROW, MAIN, REST, DIM)
            values_rest = load_rows(page_v, row, real, V_ROW, MAIN, REST, DIM)
        logits = product(queries, keys, queries_rest, keys_rest, DOT, REST) * scale_log2 + extra
        p = tl.exp2(logits - sums[:, None])
        ds = p * (product(grads, values, grads_rest, values_rest, DOT, REST) - row_delta[:, None])
        sees = count > step // PAGE_TILES
        ds = tl.where(real[None, :] & sees[:, None], ds, 0.0)
        # A page that holds NaN must not reach the tokens that do not see it, and 0 * NaN is NaN.
        total = tl.where(sees[:, None], accumulate(ds, keys, total, DOT), total)
        if REST > 0:
            total_rest = tl.where(sees[:, None], accumulate(ds, keys_rest, total_rest, DOT), total_rest)
    store_rows(dq, wide, exists, total * scale, HEADS * DIM, 0, MAIN, DIM)
    if REST > 0:
        store_rows(dq, wide, exists, total_rest * scale, HEADS * DIM, MAIN, REST, DIM)


@triton.jit
def _finite(lse):
    """lse, but 0 where every visible row has bias -inf: its P is then exp(-inf - 0) = 0, not NaN."""
    return tl.where(lse == float("-inf"), 0.0, lse)


@triton.jit
def _page_gradients(
    q, k, v, lse, dout, dk, dv, delta, token_count, users, user_ptr,
    frame_ptr, group_ptr, page_ptr, pages, valid, seen, bias, num_groups, num_pages, scale_log2, scale,
    KV_HEADS: tl.constexpr, HAS_BIAS: tl.constexpr, Q_TOKEN: tl.constexpr, Q_HEAD: tl.constexpr,
    K_PAGE: tl.constexpr, K_HEAD: tl.constexpr, K_ROW: tl.constexpr, V_PAGE: tl.constexpr,
    V_HEAD: tl.constexpr, V_ROW: tl.constexpr, HEADS: tl.constexpr, SHARE: tl.constexpr, DIM: tl.constexpr,
    PAGE_ROWS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PAGE_TILES: tl.constexpr,
    MAIN: tl.constexpr, REST: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    page = (tl.program_id(0) // PAGE_TILES).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    row = (tl.program_id(0) % PAGE_TILES) * KEYS + tl.arange(0, KEYS)
    inside = row < PAGE_ROWS
    first_user = tl.load(user_ptr + page)
    end_user = tl.load(user_ptr + page + 1)
    used = inside & (first_user < end_user)
    k += page * K_PAGE + kv_head * K_HEAD
    v += page * V_PAGE + kv_head * V_HEAD
    keys = load_rows(k, row, used, K_ROW, 0, MAIN, DIM)
    values = load_rows(v, row, used, V_ROW, 0, MAIN, DIM)
    total_k = tl.zeros([KEYS, MAIN], tl.float32)
    total_v = tl.zeros([KEYS, MAIN], tl.float32)
    keys_rest = keys
    values_rest = values
    total_k_rest = tl.zeros([KEYS, 16], tl.float32)
    total_v_rest = tl.zeros([KEYS, 16], tl.float32)
    if REST > 0:
        keys_rest = load_rows(k, row, used, K_ROW, MAIN, REST, DIM)
        values_rest = load_rows(v, row, used, V_ROW, MAIN, REST, DIM)
        total_k_rest = tl.zeros([KEYS, REST], tl.float32)
        total_v_rest = tl.zeros([KEYS, REST], tl.float32)

    for user in range(first_user, end_user):
        entry = tl.load(users + user)
        _, rows, extra = entry_page(pages, valid, bias, entry, num_pages, PAGE_ROWS, HAS_BIAS)
        real = row < rows
        group = _group_of(page_ptr, num_groups, entry)
        place = entry - tl.load(page_ptr + group)
        first, end = tokens_seeing(
            frame_ptr, seen, tl.load(group_ptr + group), tl.load(group_ptr + group + 1), place
        )
        tiles = tl.cdiv(tl.maximum(end - first, 0), QUERIES)
        for step in range(0, tiles * SHARE):
            head = kv_head * SHARE + step % SHARE
            tokens = first + (step // SHARE) * QUERIES + tl.arange(0, QUERIES)
            sees = tokens < end
            sees = sees & (tl.load(token_count + tokens, mask=sees, other=0) > place)
            wide = tokens.to(tl.int64)
            # Tokens that do not see the page are read as 0, whatever they hold.
            queries = load_rows(q + head * Q_HEAD, wide, sees, Q_TOKEN, 0, MAIN, DIM)
            grads = load_rows(dout + head * DIM, wide, sees, HEADS * DIM, 0, MAIN, DIM)
            queries_rest = queries
            grads_rest = grads
            if REST > 0:
                queries_rest = load_rows(q + head * Q_HEAD, wide, sees, Q_TOKEN, MAIN, REST, DIM)
                grads_rest = load_rows(dout + head * DIM, wide, sees, HEADS * DIM, MAIN, REST, DIM)
            at = wide * HEADS + head
            sums = _finite(tl.load(lse + at, mask=sees, other=0.0)) * _LOG2E
            token_delta = tl.load(delta + at, mask=sees, other=0.0)
            visible = real[:, None] & sees[None, :]
            logits = product(keys, queries, keys_rest, queries_rest, DOT, REST) * scale_log2 + extra
            p = tl.where(visible, tl.exp2(logits - sums[None, :]), 0.0)
            dp = product(values, grads, values_rest, grads_rest, DOT, REST)
            ds = tl.where(visible, p * (dp - token_delta[None, :]), 0.0)
            total_v = accumulate(p, grads, total_v, DOT)
            total_k = accumulate(ds, queries, total_k, DOT)
            if REST > 0:
                total_v_rest = accumulate(p, grads_rest, total_v_rest, DOT)
                total_k_rest = accumulate(ds, queries_rest, total_k_rest, DOT)

    to = (page * KV_HEADS + kv_head) * PAGE_ROWS * DIM
    store_rows(dk + to, row, inside, total_k * scale, DIM, 0, MAIN, DIM)
    store_rows(dv + to, row, inside, total_v, DIM, 0, MAIN, DIM)
    if REST > 0:
        store_rows(dk + to, row, inside, total_k_rest * scale, DIM, MAIN, REST, DIM)
        store_rows(dv + to, row, inside, total_v_rest, DIM, MAIN, REST, DIM)


@triton.jit
def _group_of(page_ptr, num_groups, entry):
    """The group that owns an entry of the table."""
    group = -1
    for base in range(0, num_groups, 128):
        g = base + tl.arange(0, 128)
        exists = g < num_groups
        start = tl.load(page_ptr + g, mask=exists, other=0)
        group += tl.sum((exists & (start <= entry)).to(tl.int32), 0)
    return group
