# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels that write pages: norm_rope_write_, copy_pages_, rotate_pages_.

Copies and V bit for bit, rotations and norms to a relative L2 of 1e-6 in float32, one rounding in half
precision. The pool is NaN before: what must not be written still is.
"""

from __future__ import annotations

import pytest
import torch
from triton_device import DEVICES

from ardiff_engine.errors import PageTableError
from ardiff_engine.kernels.triton import norm_rope_write, pages
from ardiff_engine.ops import check_device
from ardiff_engine.ops.norm_rope import norm_rope
from ardiff_engine.ops.pages import reference_rotate_pages_

LIMITS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.cpu().double(), want.double()
    assert got.shape == want.shape and torch.isfinite(got).all()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def check_write(
    device: str, *, heads: int, kv_heads: int, dim: int, norm: str, rope: bool, bias: bool, affine: bool,
    dtype: torch.dtype = torch.float32, pool_dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    tokens, rows = 5, 3
    qkv = draw(0, tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    positions, slots = torch.tensor([0, 1, 77, 10**6, 2**31 - 1]), torch.tensor([7, -1, 2, 0, 100])
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / dim) if rope else None
    sizes = [n * dim if norm == "rms_full" else dim for n in (heads, heads, kv_heads, kv_heads)]
    weights = [draw(i + 1, n) + 1 if affine else None for i, n in enumerate(sizes)]
    qkv_bias = draw(9, qkv.shape[1]) if bias else None
    pool = torch.full(
        (2, 4, kv_heads, rows, dim), torch.nan, dtype=pool_dtype or dtype
    )  # two layers: strided
    k_pages, v_pages = pool.clone().to(device), pool.clone().to(device)
    there = [None if t is None else t.to(device) for t in (*weights, frequencies, qkv_bias)]
    rest = (heads, kv_heads, norm, *there[:4], 1e-5, *there[4:])
    q = norm_rope_write.run(
        qkv.to(device), k_pages[1], v_pages[1], slots.to(device), positions.to(device), *rest
    )
    wide = [None if t is None else t.double() for t in (*weights, qkv_bias)]
    want = norm_rope(
        qkv.double(), positions, heads=heads, kv_heads=kv_heads, norm=norm, q_weight=wide[0],
        q_bias=wide[1], k_weight=wide[2], k_bias=wide[3], eps=1e-5, frequencies=frequencies, qkv_bias=wide[4],
    )  # fmt: skip
    assert q.dtype == dtype and relative(q, want[0]) <= LIMITS[dtype]
    for pool, rotated in ((k_pages.cpu(), want[1]), (v_pages.cpu(), want[2])):
        for token, (page, row) in {0: (2, 1), 2: (0, 2), 3: (0, 0)}.items():
            assert relative(pool[1, page, :, row], rotated[token]) <= LIMITS[dtype]
            if rotated is want[2] and not bias and pool.dtype == dtype:
                assert torch.equal(pool[1, page, :, row].double(), rotated[token])
            pool[1, page, :, row] = torch.nan
        assert pool.isnan().all()
    with pytest.raises(PageTableError, match="slot"):
        check_device(device)  # slot 100


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", ["none", "layer", "rms", "rms_full"])
def test_every_norm_with_and_without_the_rest(norm: str, device: str) -> None:
    affine = norm != "none"
    check_write(device, heads=3, kv_heads=3, dim=72, norm=norm, rope=True, bias=True, affine=affine)
    check_write(device, heads=4, kv_heads=2, dim=6, norm=norm, rope=False, bias=False, affine=False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [2, 64, 80, 96, 128])
def test_head_dims(dim: int, device: str) -> None:
    check_write(device, heads=2, kv_heads=1, dim=dim, norm="rms", rope=True, bias=False, affine=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, device: str) -> None:
    for pool in (dtype, torch.float32):
        check_write(
            device, heads=2, kv_heads=2, dim=72, norm="layer", rope=True, bias=False, affine=True,
            dtype=dtype, pool_dtype=pool,
        )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS)
def test_copies_are_bit_for_bit(dtype: torch.dtype, device: str) -> None:
    pool = draw(0, 2, 2, 5, 3, 7, 72).to(dtype).to(device)
    pool[0, 0, 3, 0, 0, 0] = torch.nan
    before = pool.clone()
    src, dst = torch.tensor([3, 0, 9], device=device), torch.tensor([1, 4, 2], device=device)
    pages.copy_pages(pool[0], pool[1], src, dst)
    before[:, :, [1, 4]] = before[:, :, [3, 0]]
    assert torch.equal(before.view(torch.uint8), pool.view(torch.uint8))
    with pytest.raises(PageTableError, match="page"):
        check_device(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [2, 72, 128])
@pytest.mark.parametrize("dtype", LIMITS)
def test_rotations(dtype: torch.dtype, dim: int, device: str) -> None:
    pool, source = draw(0, 2, 5, 3, 7, dim).to(dtype), draw(1, 2, 2, 3, 7, dim).to(dtype)
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / dim)
    ids, deltas = torch.tensor([3, 1]), torch.tensor([-1000003, 17])
    for rows in (None, source):
        got, want = pool.to(device).clone(), pool.double()
        there = None if rows is None else rows.to(device)
        pages.rotate_pages(got, ids.to(device), deltas.to(device), frequencies.to(device), there)
        reference_rotate_pages_(want, ids, deltas, frequencies, None if rows is None else rows.double())
        assert relative(got[:, ids.to(device)], want[:, ids]) <= LIMITS[dtype]
        assert torch.equal(got[:, [0, 2, 4]].cpu(), pool[:, [0, 2, 4]])


@pytest.mark.parametrize("device", DEVICES)
def test_pages_outside_the_pool_are_not_rotated(device: str) -> None:
    pool = draw(0, 2, 3, 1, 4, 8).to(device)
    inner, ids, ones = pool.clone(), torch.tensor([1, -1], device=device), torch.ones(4, device=device)
    pages.rotate_pages(inner[:, 1:2], ids, ids, ones, None)
    assert torch.equal(inner, pool)
    with pytest.raises(PageTableError, match="page"):
        check_device(device)
