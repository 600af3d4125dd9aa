# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of norm_rope_pages and norm_rope, forward and backward, against the formula in float64.

Limits: relative L2 1e-6 in float32 (gradients 2e-6), one rounding in half precision; the angle is rounded to
float32 after its reduction, so that positions may be large.
"""

from __future__ import annotations

import pytest
import torch
from triton_device import DEVICES

from ardiff_engine.errors import PageTableError
from ardiff_engine.kernels.triton import norm_rope, norm_rope_pages
from ardiff_engine.ops import check_device
from ardiff_engine.ops.norm_rope import affine_sizes, reference_norm_rope
from ardiff_engine.ops.norm_rope_pages import reference_norm_rope_pages

Tensor = torch.Tensor
LIMITS = {torch.float32: (1e-6, 2e-6), torch.bfloat16: (4e-3, 4e-3), torch.float16: (5e-4, 5e-4)}
PAGES, ROWS = 6, 4


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(got: Tensor, want: Tensor) -> float:
    got, want = got.detach().cpu().double(), want.detach().double()
    assert got.shape == want.shape and torch.isfinite(got).all()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def check(
    device: str, *, heads: int, kv_heads: int, dim: int, norm: str, rope: bool, affine: bool, paged: bool,
    bias: bool = False, dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Results and all gradients; 19 tokens are two programs, one of them not full."""
    tokens = 19
    qkv = (draw(0, tokens, (heads + 2 * kv_heads) * dim) * 2 + 0.5).to(dtype)
    slots = torch.randperm(PAGES * ROWS, generator=torch.Generator().manual_seed(1))[:tokens]
    slots[::5] = -1
    positions = torch.arange(tokens) * 1001
    positions[3] = 2**31 - 1
    frequencies = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / dim) if rope else None
    if norm == "rms" and frequencies is not None:
        positions = torch.stack([positions, torch.arange(tokens) % 5, torch.arange(tokens) % 3], dim=1)
        share = [torch.arange(dim // 2) % 3 == axis for axis in range(3)]
        frequencies = torch.stack([torch.where(own, frequencies, 0) for own in share])
    sizes = affine_sizes(heads, kv_heads, dim, norm)
    weights = [draw(i + 2, n) + (i % 2 == 0) if affine else None for i, n in enumerate(sizes)]
    qkv_bias = draw(7, qkv.shape[1]) if bias else None

    leaves = [None if t is None else t.double().requires_grad_() for t in (qkv, *weights, qkv_bias)]
    own, wide, wide_bias = leaves[0], leaves[1:5], leaves[5]
    if paged:
        want = reference_norm_rope_pages(
            own, slots, positions, PAGES, ROWS, heads, kv_heads, norm, *wide, 1e-5, frequencies
        )
    else:
        want = reference_norm_rope(own, positions, heads, kv_heads, norm, *wide, 1e-5, frequencies, wide_bias)
    dout = [draw(20 + i, *o.shape).to(dtype) for i, o in enumerate(want)]
    given = [t for t in leaves if t is not None]
    wanted = iter(torch.autograd.grad(want, given, [d.double() for d in dout]))

    q_weight, q_bias, k_weight, k_bias, frequencies, qkv_bias, qkv, slots, positions = (
        None if t is None else t.to(device)
        for t in (*weights, frequencies, qkv_bias, qkv, slots, positions)
    )  # fmt: skip
    of_norm = (q_weight, q_bias, k_weight, k_bias, 1e-5, frequencies)
    dout = [d.to(device) for d in dout]
    if paged:
        got = norm_rope_pages.run(qkv, slots, positions, PAGES, ROWS, heads, kv_heads, dim, norm, *of_norm)
        # Page gradients may be views of anything whose rows are dense.
        strided = [torch.stack([d, torch.full_like(d, torch.nan)], 2)[:, :, 0] for d in dout[1:]]
        grads = norm_rope_pages.backward(
            dout[0], *strided, qkv, slots, positions, heads, kv_heads, norm, q_weight, k_weight, 1e-5,
            frequencies,
        )  # fmt: skip
    else:
        got = norm_rope.run(qkv, positions, heads, kv_heads, norm, *of_norm, qkv_bias)
        *grads, dbias = norm_rope.backward(
            *dout, qkv, positions, heads, kv_heads, norm, q_weight, k_weight, 1e-5, frequencies, qkv_bias
        )
    forward, backward = LIMITS[dtype]
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype and relative(one, other) <= forward
    assert grads[0].dtype == dtype and relative(grads[0], next(wanted)) <= backward
    assert grads[1].shape == (sum(sizes),) and grads[1].dtype == torch.float32
    for part in grads[1].split(sizes) if affine else ():
        assert relative(part, next(wanted)) <= backward
    if bias:
        assert relative(dbias, next(wanted)) <= backward
    check_device(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("paged", [True, False])
@pytest.mark.parametrize("norm", ["none", "layer", "rms", "rms_full"])
def test_every_norm_with_and_without_the_rest(norm: str, paged: bool, device: str) -> None:
    affine = norm != "none"
    check(
        device, heads=3, kv_heads=3, dim=72, norm=norm, rope=True, affine=affine, paged=paged, bias=not paged
    )
    check(device, heads=4, kv_heads=2, dim=6, norm=norm, rope=False, affine=False, paged=paged)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [2, 128])
def test_head_dims(dim: int, device: str) -> None:
    check(device, heads=2, kv_heads=1, dim=dim, norm="rms", rope=True, affine=True, paged=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, device: str) -> None:
    for paged in (True, False):
        check(
            device, heads=2, kv_heads=2, dim=72, norm="layer", rope=True, affine=True, paged=paged,
            bias=not paged, dtype=dtype,
        )  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_call_gives_the_same_bits(device: str) -> None:
    qkv, ids = draw(0, 40, 24).to(device), torch.arange(40, device=device)
    dq, dk, dv = (draw(i, 40, 2, 4).to(device) for i in (1, 2, 3))
    pages = [t.reshape(10, 4, 2, 4).transpose(1, 2) for t in (dk, dv)]
    calls = [
        norm_rope_pages.backward(dq, *pages, qkv, ids, ids, 2, 2, "layer", None, None, 1e-5, None)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*calls, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_a_slot_outside_the_pages_writes_nothing_reads_nothing_and_is_reported(device: str) -> None:
    qkv, ids = draw(0, 2, 24).to(device), torch.tensor([0, 7], device=device)
    q, k, v = norm_rope_pages.run(qkv, ids, ids, 1, 4, 2, 2, 4, "rms", *(None,) * 4, 1e-5, None)
    assert torch.isfinite(q).all() and k[0, :, 0].all() and not k[0, :, 1:].any() and not v[0, :, 1:].any()
    with pytest.raises(PageTableError, match="slot"):
        check_device(device)
    dqkv, _ = norm_rope_pages.backward(
        torch.ones_like(q), torch.ones_like(k), torch.ones_like(v), qkv, ids, ids, 2, 2, "rms", None, None,
        1e-5, None,
    )  # fmt: skip
    assert dqkv[0].all() and dqkv[1, :8].all() and not dqkv[1, 8:].any()


@pytest.mark.parametrize("device", DEVICES)
def test_no_tokens(device: str) -> None:
    qkv, ids = torch.empty(0, 24, device=device), torch.empty(0, dtype=torch.int64, device=device)
    q, k, v = norm_rope_pages.run(qkv, ids, ids, 1, 4, 2, 2, 4, "layer", *(None,) * 4, 1e-5, None)
    assert q.shape == (0, 2, 4) and not k.any() and not v.any()
    dqkv, sums = norm_rope_pages.backward(q, k, v, qkv, ids, ids, 2, 2, "layer", None, None, 1e-5, None)
    assert dqkv.shape == (0, 24) and sums.shape == (16,) and not sums.any()
