# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of modulate, gate_residual and their backward passes against float64.

Limits: relative L2 1e-6 in float32 (gradients summed over tokens 2e-6), half precision one rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from triton_device import DEVICES

from ardiff_engine.errors import PageTableError
from ardiff_engine.kernels.triton import frame_sums, gate_residual, modulate
from ardiff_engine.ops import check_device
from ardiff_engine.ops.gate_residual import reference_gate_residual, reference_gate_residual_backward
from ardiff_engine.ops.modulate import reference_modulate, reference_modulate_backward

LIMITS = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SHAPES = [(1, 3, 1), (37, 100, 4), (3, 1152, 2)]
WIDE = (2, 2100, 2)  # one row does not fit the usual block


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.cpu().double(), want.double()
    assert got.shape == want.shape and torch.isfinite(got).all()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def frames(tokens: int, rows: int) -> torch.Tensor:
    """Unsorted ids; with several rows, the last has no tokens."""
    random = torch.Generator().manual_seed(7)
    return torch.randint(0, max(rows - 1, 1), (tokens,), generator=random, dtype=torch.int32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("shape", [*SHAPES, WIDE], ids=str)
def test_modulate_and_its_gradients(shape: tuple[int, int, int], norm: str, device: str) -> None:
    tokens, width, rows = shape
    x, ids = draw(0, tokens, width) * 3 + 1, frames(tokens, rows)
    table = draw(1, rows, 2, width)  # rows of shift and scale are strided views
    dy, dnormed = draw(2, tokens, width), draw(3, tokens, width)
    there = [t.to(device) for t in (x, table, ids, dy, dnormed)]
    shift, scale = there[1][:, 0], there[1][:, 1]
    wide = x.double(), table[:, 0].double(), table[:, 1].double()
    for both in (True, False):
        got = modulate.run(there[0], shift, scale, there[2], norm, 1e-6, both)
        want = reference_modulate(*wide, ids, norm, 1e-6)
        assert relative(got[0], want[0]) <= 2e-6
        assert relative(got[1], want[1]) <= 2e-6 if both else got[1].shape == (0, width)
        second = there[4] if both else there[4][:0]
        grads = modulate.backward(there[3], second, there[0], scale, there[2], norm, 1e-6)
        second = dnormed.double() if both else dnormed[:0].double()
        wanted = reference_modulate_backward(dy.double(), second, wide[0], wide[2], ids, norm, 1e-6)
        for one, other in zip(grads, wanted, strict=True):
            assert relative(one, other) <= 2e-6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS)
def test_half_precision(dtype: torch.dtype, device: str) -> None:
    x, table, ids = draw(0, 37, 100, dtype=dtype), draw(1, 4, 2, 100, dtype=dtype), frames(37, 4)
    there = [t.to(device) for t in (x, table, ids)]
    shift, scale = table[:, 0].double(), table[:, 1].double()
    got = modulate.run(there[0], there[1][:, 0], there[1][:, 1], there[2], "layer", 1e-6, True)
    for one, other in zip(got, reference_modulate(x.double(), shift, scale, ids, "layer", 1e-6), strict=True):
        assert one.dtype == dtype and relative(one, other) <= LIMITS[dtype]
    grads = modulate.backward(there[0], there[0], there[0], there[1][:, 1], there[2], "layer", 1e-6)
    wide = x.double()
    wanted = reference_modulate_backward(wide, wide, wide, scale, ids, "layer", 1e-6)
    for one, other in zip(grads, wanted, strict=True):
        assert one.dtype == dtype and relative(one, other) <= LIMITS[dtype]
    bias = draw(5, 100, dtype=dtype)
    args = (there[0], there[0], there[1][:, 0], there[2], bias.to(device))
    assert (
        relative(gate_residual.run(*args), reference_gate_residual(wide, wide, shift, ids, bias.double()))
        <= (LIMITS[dtype])
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gate_residual_and_its_gradients(shape: tuple[int, int, int], biased: bool, device: str) -> None:
    tokens, width, rows = shape
    residual, branch, ids = draw(0, tokens, width), draw(1, tokens, width), frames(tokens, rows)
    gate, bias = draw(2, rows, 2, width)[:, 1], draw(3, width) if biased else None
    there = [t.to(device) for t in (residual, branch, gate, ids)]
    there_bias = None if bias is None else bias.to(device)
    wide_bias = None if bias is None else bias.double()
    want = reference_gate_residual(residual.double(), branch.double(), gate.double(), ids, wide_bias)
    assert relative(gate_residual.run(*there, there_bias), want) <= 1e-6
    gate_residual.run_in_place(*there, there_bias)
    assert relative(there[0], want) <= 1e-6
    dy = draw(4, tokens, width)
    got = gate_residual.backward(dy.to(device), *there[1:], there_bias)
    wanted = reference_gate_residual_backward(dy.double(), branch.double(), gate.double(), ids, wide_bias)
    for one, other in zip(got, wanted, strict=True):
        assert relative(one, other) <= 2e-6


@pytest.mark.parametrize("device", DEVICES)
def test_rows_with_many_tokens_are_summed_in_parts(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_sums, "_TOKENS_PER_PART", 8)
    dy, x, ids = draw(0, 75, 5), draw(1, 75, 5), frames(75, 3)
    sums = frame_sums.frame_sums(dy.to(device), x.to(device), None, ids.to(device), 3)
    again = frame_sums.frame_sums(dy.to(device), x.to(device), None, ids.to(device), 3)
    for value, got, other in zip((dy, dy * x), sums, again, strict=True):
        assert relative(got, torch.zeros(3, 5).double().index_add_(0, ids, value.double())) <= 1e-6
        assert torch.equal(got, other)


@pytest.mark.parametrize("device", DEVICES)
def test_an_id_out_of_range_reads_nothing_gives_nan_and_is_reported(device: str) -> None:
    x, table = draw(0, 3, 8).to(device), draw(1, 2, 8).to(device)
    ids = torch.tensor([0, 2, -1], dtype=torch.int32, device=device)
    for run in (
        lambda: modulate.run(x, table, table, ids, "layer", 1e-6, False)[0],
        lambda: gate_residual.run(x, x, table, ids, None),
    ):
        y = run()
        assert torch.isfinite(y[0]).all() and y[1:].isnan().all()
        with pytest.raises(PageTableError, match="frame"):
            check_device(device)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_without_tokens_do_not_reach_the_gradients(device: str) -> None:
    dy, branch, gate = draw(0, 3, 8), draw(1, 3, 8), draw(2, 2, 8)
    ids, bias = torch.zeros(3, dtype=torch.int32), draw(3, 8)
    want = reference_gate_residual_backward(dy.double(), branch.double(), gate.double(), ids, bias.double())
    gate[1] = torch.nan
    there = [t.to(device) for t in (dy, branch, gate, ids, bias)]
    for one, other in zip(gate_residual.backward(*there), want, strict=True):
        assert relative(one, other) <= 2e-6


@pytest.mark.parametrize("device", DEVICES)
def test_no_tokens(device: str) -> None:
    x, ids = torch.empty(0, 8, device=device), torch.empty(0, dtype=torch.int32, device=device)
    table = torch.ones(2, 8, device=device)
    assert modulate.run(x, table, table, ids, "layer", 1e-6, True)[1].shape == (0, 8)
    for grads in (
        modulate.backward(x, x, x, table, ids, "layer", 1e-6),
        gate_residual.backward(x, x, table, ids, None),
    ):
        assert grads[0].shape == (0, 8) and not grads[1].any()
