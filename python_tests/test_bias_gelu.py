# SPDX-License-Identifier: Apache-2.0
"""bias_gelu against torch.nn.functional.gelu in float64. Limits: 1e-6 relative L2, 2e-6 for gradients."""

from __future__ import annotations

import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import TensorError
from ardiff_engine.ops.bias_gelu import bias_gelu

SIZES = [(1, 1), (3, 7), (33, 72), (131, 1536)]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


def inputs(tokens: int, width: int, bias: bool) -> list[torch.Tensor]:
    torch.manual_seed(tokens + width)
    given = [2 * torch.randn(tokens, width)]
    return given + [torch.randn(width)] if bias else given


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_both_passes(size: tuple[int, int], bias: bool) -> None:
    given = [t.requires_grad_() for t in inputs(*size, bias)]
    wide = [t.detach().double().requires_grad_() for t in given]
    y = bias_gelu(*given)
    want = torch.nn.functional.gelu(sum(wide[1:], wide[0]), approximate="tanh")
    assert relative(y, want) <= 1e-6
    dy = torch.randn(size)
    got = torch.autograd.grad(y, given, dy)
    for one, other in zip(got, torch.autograd.grad(want, wide, dy.double()), strict=True):
        assert relative(one, other) <= 2e-6
    assert torch.equal(y, bias_gelu(*(t.detach() for t in given)))


@pytest.mark.usefixtures("isa")
def test_far_from_zero_and_not_a_number() -> None:
    ends = torch.tensor([[-3.4e38, -3e38, -1e4, -50.0, -9.0, 9.0, 50.0, 1e4, 3e38]])
    x = ends.clone().requires_grad_()
    y = bias_gelu(x)
    assert torch.equal(y[0, 5:], ends[0, 5:]) and (y[0, :5].abs() <= 1e-27).all()
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert (dx[0, :5].abs() <= 1e-26).all() and torch.equal(dx[0, 5:], torch.ones(4))
    bad = torch.full((1, 20), torch.nan, requires_grad=True)
    y = bias_gelu(bad)
    assert y.isnan().all() and torch.autograd.grad(y.sum(), bad)[0].isnan().all()


@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(bias: bool) -> None:
    assert torch.autograd.gradcheck(bias_gelu, [t.double().requires_grad_() for t in inputs(4, 5, bias)])


def test_threads_do_not_change_a_bit() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, bias = (t.requires_grad_() for t in inputs(301, 500, True))
            y = bias_gelu(x, bias)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, bias))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strided_arguments_and_no_tokens() -> None:
    x, bias = inputs(6, 20, True)
    want = bias_gelu(x, bias)
    assert torch.equal(want, bias_gelu(x.T.contiguous().T, torch.stack([bias, bias], 1)[:, 0]))
    assert bias_gelu(x[:0], bias).shape == (0, 20)


def test_opcheck() -> None:
    x, bias = (t.requires_grad_() for t in inputs(3, 5, True))
    for arguments in ((x, bias), (x, None)):
        torch.library.opcheck(torch.ops.ardiff.bias_gelu.default, arguments)
        torch.library.opcheck(
            torch.ops.ardiff.bias_gelu_backward.default,
            tuple(None if t is None else t.detach() for t in (x, *arguments)),
        )


def test_wrong_arguments() -> None:
    x, bias = inputs(3, 5, True)
    for bad in ((x[0], bias), (x, bias[:4]), (x, bias.double()), (x.long(), bias)):
        with pytest.raises(TensorError):
            bias_gelu(*bad)
