# SPDX-License-Identifier: Apache-2.0
"""The packed linear layer against float64, and its promise: a row's bits do not depend on its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine import ops
from ardiff_engine.errors import TensorError
from ardiff_engine.ops.linear import PANEL_OUTPUTS, reference_linear

# (rows, inputs, outputs): whole and partial tiles, panels, ranges of inputs
SIZES = [
    (1, 1, 1), (8, 16, 48), (9, 17, 49), (32, 384, 1152), (31, 1536, 384), (5, 257, 95), (130, 100, 30),
    (300, 64, 144), (13, 1000, 77),
]  # fmt: skip


def inputs(rows: int, inner: int, outer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + inner)
    return (
        torch.randn(rows, inner, generator=generator),
        torch.randn(outer, inner, generator=generator) / inner**0.5,
        torch.randn(outer, generator=generator),
    )


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_against_float64(size: tuple[int, int, int], gelu: bool) -> None:
    x, weight, bias = inputs(*size)
    for b in (bias, None):
        expected = x.double() @ weight.double().t() + (0 if b is None else b.double())
        if gelu:
            expected = torch.nn.functional.gelu(expected, approximate="tanh")
        got = ops.linear(x, ops.pack_linear(weight), b, gelu=gelu)
        assert got.shape == expected.shape and relative(got, expected) <= 1e-6


@pytest.mark.usefixtures("isa")
def test_gelu_from_end_to_end_of_the_float_range() -> None:
    z = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, -0.0, 1e-30, 3e38, -3e38, 1e19, -1e19])])
    got = ops.linear(z[:, None], ops.pack_linear(torch.ones(1, 1)), gelu=True)[:, 0]
    expected = torch.nn.functional.gelu(z.double(), approximate="tanh")
    assert torch.isfinite(got).all()
    assert ((got - expected).abs() <= 1e-6 * expected.abs() + 1e-7).all()
    odd = torch.tensor([[torch.nan], [torch.inf], [-torch.inf]])
    nan, up, down = ops.linear(odd, ops.pack_linear(torch.ones(1, 1)), gelu=True)[:, 0].tolist()
    assert nan != nan and up == float("inf") and down != down


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("size", [(700, 192, 576), (300, 1536, 96), (300, 100, 30), (520, 4, 16)])
def test_a_row_is_the_same_in_any_batch_and_for_any_threads(size: tuple[int, int, int]) -> None:
    x, weight, bias = inputs(*size)
    packed, before = ops.pack_linear(weight), torch.get_num_threads()
    whole = ops.linear(x, packed, bias, gelu=True)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for count in (*range(1, 40), 64, 81, 128, 129, 257):
                for first in (0, 5, 32):
                    got = ops.linear(x[first : first + count], packed, bias, gelu=True)
                    assert torch.equal(got, whole[first : first + count]), (threads, count, first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("isa")
def test_packing_keeps_every_weight_and_is_a_copy() -> None:
    weight = torch.randn(100, 33)
    packed = ops.pack_linear(weight)
    assert packed.panels.shape == (3, 33, PANEL_OUTPUTS)
    assert torch.equal(packed.unpack(), weight)
    assert torch.equal(ops.pack_linear(weight.t().contiguous().t()).panels, packed.panels)
    assert torch.equal(ops.pack_linear(torch.cat([weight, weight], 1)[:, 33:]).panels, packed.panels)
    kept = weight.clone()
    weight.zero_()
    assert torch.equal(packed.unpack(), kept)


def test_the_reference_packs_and_multiplies_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = inputs(9, 17, 49)
    native = ops.pack_linear(weight)
    monkeypatch.setenv("ARDIFF_BACKEND", "reference")
    packed = ops.pack_linear(weight)
    assert torch.equal(packed.panels, native.panels)
    expected = torch.nn.functional.linear(x, weight, bias)
    assert torch.allclose(ops.linear(x, packed, bias), expected, atol=1e-6)
    assert torch.allclose(reference_linear(x, packed, None, True), torch.nn.functional.gelu(
        expected - bias, approximate="tanh"), atol=1e-6)  # fmt: skip


@pytest.mark.usefixtures("isa")
def test_shapes_strides_and_arrays() -> None:
    x, weight, bias = inputs(24, 17, 49)
    packed = ops.pack_linear(weight)
    flat = ops.linear(x, packed, bias)
    assert torch.equal(ops.linear(x.view(2, 3, 4, 17), packed, bias), flat.view(2, 3, 4, 49))
    assert torch.equal(ops.linear(x.t().contiguous().t(), packed, bias), flat)
    assert ops.linear(x[:0], packed, bias).shape == (0, 49)
    assert torch.equal(ops.linear(x[0], packed, bias), flat[0])
    assert torch.equal(ops.linear(np.asarray(x), ops.pack_linear(np.asarray(weight)), np.asarray(bias)), flat)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w, b: ops.linear(x[:, :3], w, b), "shape of x: got"),
        (lambda x, w, b: ops.linear(x.double(), w, b), "dtype of x"),
        (lambda x, w, b: ops.linear(x, w, b[:3]), "shape of bias"),
        (lambda x, w, b: ops.linear(x, w, b.half()), "dtype of bias"),
        (lambda x, w, b: ops.linear(x.clone().requires_grad_(), w, b), "gradient of x"),
        (lambda x, w, b: ops.linear(torch.empty(2, 17, device="meta"), w, b), "device of x"),
        (lambda x, w, b: ops.pack_linear(x[0]), "shape of weight"),
        (lambda x, w, b: ops.pack_linear(x.double()), "dtype of weight"),
        (lambda x, w, b: ops.pack_linear(x[:, :0]), "0 inputs"),
    ],
)
def test_bad_input(call, message: str) -> None:
    x, weight, bias = inputs(4, 17, 49)
    with pytest.raises(TensorError, match=message):
        call(x, ops.pack_linear(weight), bias)
