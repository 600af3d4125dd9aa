# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of bias_gelu against torch's GELU in float64.

Limits: relative L2 1e-6 in float32 (gradients 2e-6), one rounding in half precision; Triton's interpreter
cuts bfloat16 off instead of rounding it, which is twice that.
"""

from __future__ import annotations

import pytest
import torch
from triton_device import DEVICES, INTERPRETED

from ardiff_engine.kernels.triton import bias_gelu

Tensor = torch.Tensor
BFLOAT16 = 8e-3 if INTERPRETED else 4e-3
LIMITS = {torch.float32: (1e-6, 2e-6), torch.bfloat16: (BFLOAT16, BFLOAT16), torch.float16: (5e-4, 5e-4)}
SIZES = [(1, 1), (37, 100), (130, 260)]  # the last needs several programs in both directions


def relative(got: Tensor, want: Tensor) -> float:
    got, want = got.cpu().double(), want.detach()
    assert got.shape == want.shape and torch.isfinite(got).all()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_both_passes(size: tuple[int, int], dtype: torch.dtype, biased: bool, device: str) -> None:
    random = torch.Generator().manual_seed(size[0])
    x, dy = (torch.randn(size, generator=random) * 2 for _ in range(2))
    x, dy, bias = x.to(dtype), dy.to(dtype), torch.randn(size[1], generator=random).to(dtype)
    given = [x, bias] if biased else [x]
    wide = [t.double().requires_grad_() for t in given]
    want = torch.nn.functional.gelu(sum(wide[1:], wide[0]), approximate="tanh")
    there = [x.to(device), bias.to(device) if biased else None]
    forward, backward = LIMITS[dtype]
    y = bias_gelu.run(*there)
    assert y.dtype == dtype and relative(y, want) <= forward
    got = bias_gelu.backward(dy.to(device), *there)
    assert biased or got[1].shape == (0,)
    for one, other in zip(got, torch.autograd.grad(want, wide, dy.double()), strict=False):
        assert one.dtype == dtype and relative(one, other) <= backward
    again = bias_gelu.backward(dy.to(device), *there)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_far_from_zero_and_not_a_number(device: str) -> None:
    ends = [-3.4e38, -3e38, -1e4, -50.0, -11.0, 11.0, 50.0, 1e4, 3e38, torch.nan, -torch.inf, torch.inf]
    x = torch.tensor([ends], device=device)
    y, (dx, _) = bias_gelu.run(x, None), bias_gelu.backward(torch.ones_like(x), x, None)
    assert torch.equal(y[0, 5:9], x[0, 5:9]) and (y[0, :5].abs() <= 1e-27).all()
    assert y[0, 9:11].isnan().all() and y[0, 11] == torch.inf
    assert torch.equal(dx[0, 5:9].cpu(), torch.ones(4)) and (dx[0, :5].abs() <= 1e-26).all()
    assert dx[0, 9:].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_no_tokens(device: str) -> None:
    x, bias = torch.empty(0, 8, device=device), torch.ones(8, device=device)
    dx, dbias = bias_gelu.backward(x, x, bias)
    assert bias_gelu.run(x, bias).shape == dx.shape == (0, 8) and dbias.shape == (8,) and not dbias.any()
