# SPDX-License-Identifier: Apache-2.0
"""gate_residual against float64. Limits: forward 1e-6 relative L2, gradients 2e-6."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import TensorError
from ardiff_engine.ops.gate_residual import gate_residual, gate_residual_, reference_gate_residual

SIZES = [(1, 1, 1), (3, 7, 2), (33, 72, 4), (128, 1152, 3), (0, 8, 2)]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)).item()


def inputs(tokens: int, width: int, rows: int, bias: bool) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(tokens + width)
    gate = torch.randn(rows, 6, width)[:, 2]
    ids = torch.randint(0, rows, (tokens,), dtype=torch.int32)
    return (
        torch.randn(tokens, width),
        torch.randn(tokens, width),
        gate,
        ids,
        torch.randn(width) if bias else None,
    )


def wide(values: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [t if t is None or not t.is_floating_point() else t.double() for t in values]


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_forward(size: tuple[int, int, int], bias: bool) -> None:
    *given, b = values = inputs(*size, bias)
    out = gate_residual(*given, bias=b)
    assert relative(out, reference_gate_residual(*wide(values))) <= 1e-6
    assert gate_residual_(*given, bias=b) is given[0]
    assert torch.equal(given[0], out)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", SIZES[1:4])
def test_backward(size: tuple[int, int, int], bias: bool) -> None:
    values = inputs(*size, bias)
    dy = torch.randn(values[0].shape)

    def gradients(
        tensors: list[torch.Tensor], weight: torch.Tensor, reference: bool
    ) -> tuple[torch.Tensor, ...]:
        tensors = [
            t if t is None or not t.is_floating_point() else t.detach().requires_grad_() for t in tensors
        ]
        out = reference_gate_residual(*tensors) if reference else gate_residual(*tensors[:4], bias=tensors[4])
        leaves = [t for t in tensors if t is not None and t.requires_grad]
        return torch.autograd.grad(out, leaves, weight)

    expected = gradients(wide(values), dy.double(), True)
    for got, want in zip(gradients(list(values), dy, False), expected, strict=True):
        assert relative(got, want) <= 2e-6


@pytest.mark.parametrize("bias", [False, True])
def test_gradcheck(bias: bool) -> None:
    residual, branch, gate, ids, b = wide(inputs(5, 6, 3, bias))
    leaves = [t.detach().requires_grad_() for t in (residual, branch, gate, b) if t is not None]
    torch.autograd.gradcheck(lambda r, x, g, b=None: gate_residual(r, x, g, ids, bias=b), leaves)


def test_threads_do_not_change_a_bit() -> None:
    *given, bias = inputs(200, 1152, 5, True)
    before = torch.get_num_threads()

    def run() -> list[torch.Tensor]:
        leaves = [t.detach().clone().requires_grad_() for t in (*given[:3], bias)]
        out = gate_residual(*leaves[:3], given[3], bias=leaves[3])
        return [out.detach(), *torch.autograd.grad((out * out).sum(), leaves)]

    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(one, run(), strict=True))
    finally:
        torch.set_num_threads(before)


def test_in_place_refuses_a_gradient_and_strides() -> None:
    residual, branch, gate, ids, _ = inputs(4, 8, 2, False)
    with pytest.raises(TensorError, match="in place"):
        gate_residual_(residual, branch.requires_grad_(), gate, ids)
    with torch.no_grad():
        gate_residual_(residual, branch, gate, ids)
    with pytest.raises(TensorError, match="in place"):
        gate_residual_(torch.zeros(8, 4).T, branch.detach(), gate, ids)


def test_wrong_arguments() -> None:
    residual, branch, gate, ids, bias = inputs(4, 8, 2, True)
    wrong = ids.clone()
    wrong[0] = 2
    before = residual.clone()
    for in_place in (gate_residual, gate_residual_):
        with pytest.raises(TensorError, match="frame_ids"):
            in_place(residual, branch, gate, wrong)
        with pytest.raises(TensorError, match="branch"):
            in_place(residual, branch[:3], gate, ids)
        with pytest.raises(TensorError, match="gate"):
            in_place(residual, branch, gate[:, :4], ids)
        with pytest.raises(TensorError, match="bias"):
            in_place(residual, branch, gate, ids, bias=bias[:3])
    assert torch.equal(residual, before)


@pytest.mark.parametrize("bias", [False, True])
def test_opcheck(bias: bool) -> None:
    residual, branch, gate, ids, b = inputs(4, 8, 2, bias)
    leaves = [t.detach().clone().requires_grad_() for t in (residual, branch, gate)]
    b = None if b is None else b.requires_grad_()
    torch.library.opcheck(torch.ops.ardiff.gate_residual.default, (*leaves, ids, b))
    plain = (residual, branch, gate.contiguous(), ids, None if b is None else b.detach())
    torch.library.opcheck(torch.ops.ardiff.gate_residual_.default, plain)


def test_half_precision_is_computed_in_float32() -> None:
    residual, branch, gate, ids, bias = inputs(64, 32, 3, True)
    half = [value.bfloat16() for value in (residual, branch, gate)]
    wide = [value.float() for value in half]
    exact = reference_gate_residual(*wide, ids, bias.bfloat16().float())
    assert torch.equal(gate_residual(*half, ids, bias=bias.bfloat16()), exact.bfloat16())


def test_arrays_of_other_libraries() -> None:
    residual, branch, gate, ids, bias = inputs(5, 8, 2, True)
    want = gate_residual(residual, branch, gate, ids, bias=bias)
    arrays = [value.numpy() for value in (branch, gate.contiguous(), ids)]
    assert torch.equal(gate_residual(residual.numpy(), *arrays, bias=bias.numpy()), want)
    own = residual.numpy().copy()
    gate_residual_(own, *arrays, bias=bias.numpy())
    assert np.array_equal(own, want.numpy())


def test_in_place_refuses_memory_that_it_cannot_share() -> None:
    residual, branch, gate, ids, _ = inputs(5, 8, 2, False)
    frozen = residual.numpy().copy()
    frozen.flags.writeable = False
    with pytest.raises(TensorError, match="residual"):
        gate_residual_(frozen, branch, gate, ids)
    with pytest.raises(TensorError, match="residual"):
        gate_residual_(residual.tolist(), branch, gate, ids)  # type: ignore[arg-type]
