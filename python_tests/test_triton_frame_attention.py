# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of frame_attention against float64, forward and backward.

Limits: relative L2 1e-5 in float32 (about 3e-7 is typical), 4e-3 in bfloat16, 1e-3 in float16; lse 1e-5,
1e-3.
Free pages, tail rows and fresh outputs hold NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers.attention_cases import CASES, RAGGED, Case, relative
from triton_device import DEVICES

from ardiff_engine.errors import PageTableError, TensorError
from ardiff_engine.kernels.triton import frame_attention, frame_attention_backward
from ardiff_engine.kernels.triton.frame_attention_tile import forward_tile, split_dim
from ardiff_engine.kernels.triton.inverse_index import InverseIndexCache, invert
from ardiff_engine.ops import check_device

LIMITS = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (4e-3, 1e-3), torch.float16: (1e-3, 1e-3)}
SMALL = ("bias", "block-causal", "out-of-order-views", "page-listed-twice", "some-empty-pages")
Tensors = tuple[torch.Tensor, ...]


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(case: Case, device: str, inputs: Tensors, grads: Tensors | None = None) -> Tensors:
    """(o, lse), and with the gradients of both also (dq, dk, dv)."""
    table = case.table().to(device)
    lists = (table.frame_ptr, table.group_ptr, table.page_ptr, table.pages, table.valid, table.seen)
    q, k, v = (x.to(device) for x in inputs)
    o, lse = frame_attention.run(q, k, v, *lists, table.bias, case.dim**-0.5)
    if grads is None:
        return o, lse
    dout, dlse = (x.to(device) for x in grads)
    moved = frame_attention_backward.run(dout, dlse, q, k, v, o, lse, *lists, table.bias, case.dim**-0.5)
    return o, lse, *moved


def check(case: Case, device: str, dtype: torch.dtype = torch.float32) -> None:
    q, k, v = (x.to(dtype) for x in case.tensors())
    random = torch.Generator().manual_seed(1)
    dout = torch.randn(q.shape, generator=random).to(dtype)
    dlse = torch.randn(q.shape[:2], generator=random)
    got = [x.cpu() for x in run(case, device, (q, k, v), (dout, dlse))]
    wide = [x.double().nan_to_num().requires_grad_() for x in (q, k, v)]
    want_o, want_lse = case.oracle(*wide)
    grads = torch.autograd.grad((want_o, want_lse), wide, (dout.double(), dlse.double()))
    limit, lse_limit = LIMITS[dtype]
    assert got[1].dtype == torch.float32 and float((got[1] - want_lse.detach()).abs().max()) <= lse_limit
    for one, other in zip((got[0], *got[2:]), (want_o, *grads), strict=True):
        assert one.dtype == dtype and relative(one, other) <= limit


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SMALL)
def test_forward_and_backward_match_float64(name: str, device: str) -> None:
    check(replace(CASES[name], heads=2, kv_heads=2), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS)
def test_dtypes_and_shared_kv_heads(dtype: torch.dtype, device: str) -> None:
    check(replace(RAGGED, heads=2, kv_heads=1), device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [1, 7, 36, 72, 80, 96, 128])
def test_head_dims(dim: int, device: str) -> None:
    """Columns beyond the head dimension are other heads: nothing of them may be read or written."""
    case = Case([[5, 9]], [[3, 1]], [[13, 5]], [[1, 2]], dim=dim, heads=2, kv_heads=1, pool=4)
    check(case, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [16, 33, 112, 144])
def test_page_rows(rows: int, device: str) -> None:
    case = Case([[3, 20]], [[2, 0]], [[rows, rows - 1]], [[1, 2]], heads=1, kv_heads=1, rows=rows, pool=3)
    check(case, device)


@pytest.mark.parametrize("device", DEVICES)
def test_many_small_groups_and_frames(device: str) -> None:
    """More groups and frames than one step of the search for a tile's group or a token's frame."""
    idle = 129
    tokens, seen = [[0]] * idle + [[1] * 18, [3]], [[0]] * idle + [[1 + t % 2 for t in range(18)], [1]]
    pages, valid = [[]] * idle + [[3, 1], [1]], [[]] * idle + [[3, 2], [3]]
    check(Case(tokens, pages, valid, seen, heads=1, kv_heads=1, rows=3, pool=5), device)


@pytest.mark.parametrize("device", DEVICES)
def test_views_in_one_tile_do_not_leak(device: str) -> None:
    """Two frames share a tile; the page that only the second sees, and its own tokens, hold NaN."""
    case = Case([[3, 3]], [[0, 1]], [[13, 13]], [[1, 2]], heads=1, kv_heads=1)
    q, k, v = case.tensors()
    grads = torch.ones(6, 1, 16), torch.ones(6, 1)
    clean = run(case, device, (q, k, v), grads)
    k[1], v[1], q[3:] = torch.nan, torch.nan, torch.nan
    dirty = run(case, device, (q, k, v), grads)
    for one, other in zip(clean[:3], dirty[:3], strict=True):
        assert torch.equal(one[:3], other[:3]) and other[3:].isnan().all()
    alone = Case([[3]], [[0]], [[13]], [[1]], heads=1, kv_heads=1)
    poisoned = [x[:3] for x in grads]
    want = run(alone, device, (q[:3], k, v), tuple(poisoned))
    blind = replace(case, seen=[[1, 0]])
    got = run(blind, device, (q, k, v), grads)
    assert torch.equal(got[3][0], want[3][0]) and torch.equal(got[4][0], want[4][0])
    assert not got[3][1].any() and not got[4][1].any()


@pytest.mark.parametrize("device", DEVICES)
def test_empty_and_hidden_views(device: str) -> None:
    hidden = Case([[3, 4, 2]], [[0, 1]], [[13, 2]], [[0, 1, 2]], [[-torch.inf, 0.0]], heads=1, kv_heads=1)
    o, lse, dq, dk, dv = run(hidden, device, hidden.tensors(), (torch.ones(9, 1, 16), torch.ones(9, 1)))
    assert not o[:7].any() and (lse[:7] == -torch.inf).all() and not dq[:7].any()
    assert torch.isfinite(lse[7:]).all() and all(torch.isfinite(x).all() for x in (o, dq, dk, dv))


@pytest.mark.parametrize("device", DEVICES)
def test_page_ids_neighbours_and_reruns_do_not_matter(device: str) -> None:
    case = replace(RAGGED, heads=1, kv_heads=1)
    q, k, v = case.tensors()
    grads = torch.randn(51, 1, 16), torch.randn(51, 1)
    first = run(case, device, (q, k, v), grads)
    order = torch.randperm(case.pool, generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order)
    moved = replace(case, pages=[[int(place[p]) for p in row] for row in case.pages])
    second = run(moved, device, (q, k[order], v[order]), grads)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    for one, other in zip(first[3:], second[3:], strict=True):
        assert torch.equal(one[order.to(device)], other)
    assert all(torch.equal(a, b) for a, b in zip(first, run(case, device, (q, k, v), grads), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [13, 14])
def test_pages_and_rows_outside_the_pool_are_skipped(rows: int, device: str) -> None:
    case = Case([[4]], [[0, 1]], [[13, 13]], [[2]], heads=1, kv_heads=1)
    q, k, v = case.tensors()
    case = replace(case, valid=[[rows, 13]])
    alone = Case([[4]], [[0]], [[13]], [[1]], heads=1, kv_heads=1)
    grads = torch.ones(4, 1, 16), torch.ones(4, 1)
    want = run(alone, device, (q, k[:1], v[:1]), grads)
    check_device(device)
    got = run(case, device, (q, k[:1], v[:1]), grads)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    with pytest.raises(PageTableError, match="frame_attention"):
        check_device(device)


@pytest.mark.parametrize("device", DEVICES)
def test_strided_arguments(device: str) -> None:
    case = replace(RAGGED, heads=2, kv_heads=2)
    q, k, v = case.tensors()
    want = run(case, device, (q, k, v))
    wide = torch.full((q.shape[0], 6, 16), torch.nan)
    wide[:, 2:4] = q
    layers = torch.full((2, *k.shape), torch.nan)
    layers[1] = k
    rows_first = v.transpose(1, 2).contiguous().transpose(1, 2)
    got = run(case, device, (wide[:, 2:4], layers[1], rows_first))
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_no_tokens(device: str) -> None:
    case = Case([], [], [], [], heads=1, kv_heads=1)
    q, k, v = torch.empty(0, 1, 16), torch.ones(2, 1, 13, 16), torch.ones(2, 1, 13, 16)
    o, lse, dq, dk, dv = run(case, device, (q, k, v), (torch.empty(0, 1, 16), torch.empty(0, 1)))
    assert o.shape == dq.shape == (0, 1, 16) and lse.shape == (0, 1) and not dk.any() and not dv.any()


def test_split_head_dims_cover_the_dimension_with_little_padding() -> None:
    assert [split_dim(d) for d in (64, 72, 80, 96, 128)] == [(64, 0), (64, 16), (64, 16), (64, 32), (128, 0)]
    for dim in range(1, 257):
        main, rest = split_dim(dim)
        assert dim <= main + rest <= max(16, 2 * dim)
    with pytest.raises(TensorError, match="head dimension"):
        forward_tile(64, 1, 32, 257, torch.float32)


def test_inverse_index_follows_edits_and_forgets_dead_lists() -> None:
    ids = torch.tensor([2, 0, 2, 7, 2], dtype=torch.int32)
    inverse = invert(ids, 3)
    assert inverse.order.dtype == torch.int32 and inverse.offsets.tolist() == [0, 1, 1, 4]
    assert inverse.order[:4].tolist() == [1, 0, 2, 4]
    cache = InverseIndexCache()
    kept = cache.get(ids, 3)
    assert cache.get(ids, 3) is kept and cache.get(ids, 4) is not kept
    ids[0] = 1
    assert cache.get(ids, 3).offsets.tolist() == [0, 1, 2, 4]
    with torch.inference_mode():  # such tensors do not count edits
        edited = torch.zeros(1, dtype=torch.int32)
        assert cache.get(edited, 2).offsets.tolist() == [0, 1, 1]
        edited += 1
        assert cache.get(edited, 2).offsets.tolist() == [0, 0, 1]
    del ids
    assert not cache._kept
