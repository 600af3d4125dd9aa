# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels that draw: philox_normal, add_noise, solver_step, sample_timesteps.

Words, uniforms and timesteps bit for bit, normals to 2e-6, noising and solver steps to a relative L2 of 1e-6.
"""

from __future__ import annotations

import pytest
import torch
from triton_device import DEVICES

from ardiff_engine.kernels.triton import add_noise, philox_normal, sample_timesteps, solver_step
from ardiff_engine.ops.add_noise import reference_add_noise
from ardiff_engine.ops.philox_normal import reference_philox_normal
from ardiff_engine.ops.sample_timesteps import RULES, reference_sample_timesteps
from ardiff_engine.ops.solver_step import reference_solver_step

KEYS = torch.tensor(
    [[0, 0, 0, 0, 0], [-1, 2**32 - 1, 2**31, 255, 2**24 - 1], [2**40 + 5, 7, 3, 1, 49], [1, 2, 3, 4, 5]]
)
LIMITS = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.cpu().double(), want.double()
    assert got.shape == want.shape and torch.isfinite(got).all()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("elements", [1, 6, 1024, 2051])
def test_normals(elements: int, device: str) -> None:
    got = philox_normal.run(KEYS.to(device), elements).cpu()
    assert got.dtype == torch.float32 and got.shape == (4, elements)
    assert float((got - reference_philox_normal(KEYS, elements)).abs().max()) <= 2e-6


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_to_draw(device: str) -> None:
    assert philox_normal.run(KEYS.to(device), 0).shape == (4, 0)
    assert philox_normal.run(KEYS[:0].to(device), 8).shape == (0, 8)
    x0, empty = torch.empty(0, 3, device=device), torch.empty(0, device=device)
    assert add_noise.run(x0, empty, empty, x0, None, "v")[1].shape == (0, 3)
    assert sample_timesteps.run(0, 4, 10, "fopp", 0, 0, device).shape == (0, 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("target", ["", "eps", "v", "flow"])
@pytest.mark.parametrize("dtype", LIMITS)
def test_add_noise(dtype: torch.dtype, target: str, device: str) -> None:
    x0, noise = draw(0, 4, 9, 131).to(dtype), draw(1, 4, 9, 131).to(dtype)
    signal, sigma = torch.rand(4), torch.rand(4)
    for given, keys in ((noise, None), (None, KEYS)):
        there = [None if t is None else t.to(device) for t in (x0, signal, sigma, given, keys)]
        got = add_noise.run(*there, target)
        if given is None:
            given = reference_philox_normal(KEYS, 9 * 131).reshape(x0.shape)
        want = reference_add_noise(x0.double(), signal, sigma, given.double(), None, target)
        assert got[0].dtype == got[1].dtype == dtype and relative(got[0], want[0]) <= LIMITS[dtype]
        assert relative(got[1], want[1]) <= LIMITS[dtype] if target else got[1].numel() == 0


def solver_inputs() -> tuple[torch.Tensor, ...]:
    """Every column is 0 in some row; one branch is off in one row."""
    coefficients, weights = draw(0, 4, 9), draw(1, 2, 4)
    coefficients[0, 4:] = 0
    coefficients[:, 8] = torch.inf
    coefficients[1, 5] = coefficients[2, 4] = coefficients[3, 6] = 0
    weights[1, 2] = 0
    histories = [draw(seed, 4, 1100) for seed in (4, 5, 7)]
    return draw(2, 4, 1100), draw(3, 2, 4, 1100), weights, coefficients, *histories


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("limit", [torch.inf, 0.7])
@pytest.mark.parametrize("dtype", LIMITS)
def test_solver_step(dtype: torch.dtype, limit: float, device: str) -> None:
    x, outs, weights, coefficients, *histories = solver_inputs()
    x, outs, *histories = (t.to(dtype) for t in (x, outs, *histories))
    coefficients[1::2, 8] = limit
    for noise, keys in ((draw(6, 4, 1100).to(dtype), None), (None, KEYS)):
        inputs = (x, outs, weights, coefficients, *histories, keys, noise)
        got = solver_step.run(*(None if t is None else t.to(device) for t in inputs))
        if noise is None:
            noise = reference_philox_normal(KEYS, 1100)
        wide = [t.double() for t in (x, outs, weights, coefficients, *histories)]
        want = reference_solver_step(*wide, None, noise.double())
        for one, other in zip(got, want, strict=True):
            assert one.dtype == dtype and relative(one, other) <= LIMITS[dtype]


@pytest.mark.parametrize("device", DEVICES)
def test_terms_of_coefficient_zero_are_not_read_and_missing_ones_give_nan(device: str) -> None:
    x, outs, weights, coefficients, h1, h2, h3 = solver_inputs()
    coefficients[:, 7] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    h3[::2] = torch.nan
    outs[1, 2], h1[1], h2[3] = torch.nan, torch.nan, torch.nan
    noise = draw(6, 4, 1100)
    h1[0], h2[0], noise[0], noise[2] = torch.nan, torch.nan, torch.nan, torch.nan
    args = [t.to(device) for t in (x, outs, weights, coefficients)]
    there = [t.to(device) for t in (h1, h2, h3, noise)]
    result, x0 = solver_step.run(*args, *there[:3], None, there[3])
    assert torch.isfinite(result).all() and torch.isfinite(x0).all()
    result, x0 = solver_step.run(*args, None, None, None, None, None)
    assert torch.isfinite(result[0]).all() and result[1:].isnan().all() and torch.isfinite(x0).all()
    x[0, 0] = torch.nan
    args[3][0, 8] = 0.5
    result, x0 = solver_step.run(x.to(device), *args[1:], *there[:3], None, there[3])
    assert result[0, 0].isnan() and x0[0, 0].isnan()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(33, 5, 17), (3, 1, 1), (2, 7, 1), (2, 1, 9)], ids=str)
def test_timesteps_are_the_same_integers(size: tuple[int, int, int], rule: str, device: str) -> None:
    for seed, first in ((0, 0), (-5, 2**40 + 3)):
        got = sample_timesteps.run(*size, rule, seed, first, device)
        assert torch.equal(got.cpu(), reference_sample_timesteps(*size, rule, seed, first))
