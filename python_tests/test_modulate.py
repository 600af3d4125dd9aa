# SPDX-License-Identifier: Apache-2.0
"""modulate against float64 and PyTorch's own layer norm. Limits: forward 2e-6 relative L2, gradients 5e-6."""

from __future__ import annotations

import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.ops.modulate import NORMS, modulate, reference_modulate

SIZES = [(1, 1, 1), (3, 7, 2), (33, 72, 4), (64, 1152, 3), (5, 16, 1), (70, 1030, 6), (0, 8, 2)]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()


def inputs(tokens: int, width: int, rows: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(tokens + width)
    table = torch.randn(rows, 3, width)
    ids = torch.randint(0, rows, (tokens,), dtype=torch.int32)
    return torch.randn(tokens, width) * 3 + 1.5, table[:, 0], table[:, 2], ids


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", SIZES)
def test_forward(norm: str, size: tuple[int, int, int]) -> None:
    x, shift, scale, ids = inputs(*size)
    y, normed = modulate(x, shift, scale, ids, norm=norm, return_normed=True)
    expected = reference_modulate(x.double(), shift.double(), scale.double(), ids, norm, 1e-6)
    assert relative(y, expected[0]) <= 2e-6 and relative(normed, expected[1]) <= 2e-6
    assert torch.equal(y, modulate(x, shift, scale, ids, norm=norm))


def test_layer_norm_is_the_one_of_pytorch() -> None:
    x, shift, scale, ids = (t.double() if t.is_floating_point() else t for t in inputs(20, 48, 3))
    expected = torch.nn.functional.layer_norm(x, (48,), eps=1e-6) * (1 + scale[ids]) + shift[ids]
    assert relative(modulate(x, shift, scale, ids), expected) <= 1e-14


def test_statistics_survive_a_large_mean() -> None:
    x, shift, scale, ids = inputs(8, 512, 2)
    x = x + 1000
    expected = reference_modulate(x.double(), shift.double(), scale.double(), ids, "layer", 1e-6)[0]
    assert relative(modulate(x, shift, scale, ids), expected) <= 1e-4


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("return_normed", [False, True])
@pytest.mark.parametrize("size", [(3, 7, 2), (33, 72, 4), (128, 1152, 5)])
def test_backward(norm: str, return_normed: bool, size: tuple[int, int, int]) -> None:
    def gradients(dtype: torch.dtype, reference: bool) -> tuple[torch.Tensor, ...]:
        x, shift, scale, ids = inputs(*size)
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, shift, scale)]
        dy, dn = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        if reference:
            y, normed = reference_modulate(*leaves, ids, norm, 1e-6)
        else:
            result = modulate(*leaves, ids, norm=norm, return_normed=return_normed)
            y, normed = result if return_normed else (result, x)
        return torch.autograd.grad((y * dy).sum() + ((normed * dn).sum() if return_normed else 0), leaves)

    for got, expected in zip(gradients(torch.float32, False), gradients(torch.float64, True), strict=True):
        assert relative(got, expected) <= 5e-6


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("return_normed", [False, True])
def test_gradcheck(norm: str, return_normed: bool) -> None:
    x, shift, scale, ids = inputs(5, 6, 3)
    leaves = [t.detach().double().requires_grad_() for t in (x, shift, scale)]
    torch.autograd.gradcheck(lambda *a: modulate(*a, ids, norm=norm, return_normed=return_normed), leaves)


def test_rows_without_tokens_get_zero_gradient() -> None:
    x, shift, scale, _ = inputs(6, 40, 4)
    shift, scale = shift.clone().requires_grad_(), scale.clone().requires_grad_()
    modulate(x, shift, scale, torch.tensor([0, 0, 2, 2, 0, 2], dtype=torch.int32)).sum().backward()
    assert shift.grad is not None and scale.grad is not None
    assert (shift.grad[[1, 3]] == 0).all() and (scale.grad[[1, 3]] == 0).all() and (shift.grad[0] == 3).all()


def test_threads_and_neighbours_do_not_change_a_bit() -> None:
    x, shift, scale, ids = inputs(200, 1152, 5)
    before = torch.get_num_threads()

    def run() -> list[torch.Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in (x, shift, scale)]
        y = modulate(*leaves, ids)
        return [y.detach(), *torch.autograd.grad((y * y).sum(), leaves)]

    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(one, run(), strict=True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0][40:50], modulate(x[40:50], shift, scale, ids[40:50]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    x, shift, scale, ids = inputs(16, 64, 2)
    y = modulate(x.to(dtype), shift.to(dtype), scale.to(dtype), ids)
    assert y.dtype == dtype and relative(y, modulate(x, shift, scale, ids)) <= 1e-2


def test_wrong_arguments() -> None:
    x, shift, scale, ids = inputs(6, 8, 3)
    for bad in (-1, 3):
        wrong = ids.clone()
        wrong[4] = bad
        with pytest.raises(TensorError, match="frame_ids"):
            modulate(x, shift, scale, wrong)
        with pytest.raises(TensorError, match="frame_ids"):
            modulate(x.double(), shift.double(), scale.double(), wrong)
    with pytest.raises(TensorError):
        modulate(x, shift, scale, ids.short())
    with pytest.raises(TensorError):
        modulate(x, shift[:2], scale, ids)
    with pytest.raises(TensorError):
        modulate(x[None], shift, scale, ids)
    with pytest.raises(TensorError):
        modulate(x, shift[:, :4], scale, ids)
    with pytest.raises(ConfigError, match="norm"):
        modulate(x, shift, scale, ids, norm="batch")


@pytest.mark.parametrize("norm", NORMS)
def test_opcheck(norm: str) -> None:
    x, shift, scale, ids = inputs(6, 8, 3)
    leaves = [t.detach().clone().requires_grad_() for t in (x, shift, scale)]
    for return_normed in (False, True):
        torch.library.opcheck(torch.ops.ardiff.modulate.default, (*leaves, ids, norm, 1e-6, return_normed))


def test_arrays_of_other_libraries() -> None:
    x, shift, scale = torch.randn(5, 8), torch.randn(2, 8), torch.randn(2, 8)
    ids = torch.tensor([0, 1, 1, 0, 1], dtype=torch.int32)
    arrays = [value.numpy() for value in (x, shift, scale, ids)]
    assert torch.equal(modulate(*arrays), modulate(x, shift, scale, ids))
    with pytest.raises(TensorError, match="shift"):
        modulate(x, [0.0], scale, ids)  # type: ignore[arg-type]


def test_half_precision_is_computed_in_float32() -> None:
    """1 + scale alone has 8 bits in bfloat16: the result must be the float32 one, rounded once."""
    torch.manual_seed(0)
    x, shift, scale = torch.randn(64, 32), torch.randn(3, 32), 0.1 * torch.randn(3, 32)
    ids = torch.randint(0, 3, (64,), dtype=torch.int32)
    half = [value.bfloat16() for value in (x, shift, scale)]
    wide = [value.float() for value in half]
    assert torch.equal(modulate(*half, ids), reference_modulate(*wide, ids, "layer", 1e-6)[0].bfloat16())
