# SPDX-License-Identifier: Apache-2.0
"""add_noise against float64, with given and drawn noise. Limits: 1e-6 relative L2, 2e-6 per drawn value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from native_isa import isa  # noqa: F401

from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.ops.add_noise import TARGETS, add_noise, reference_add_noise
from ardiff_engine.ops.philox_normal import reference_philox_normal

SHAPES = [(1, 1), (3, 7), (5, 32, 4), (2, 4097), (3, 30_001), (0, 8)]


def inputs(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(sum(shape))
    alpha = torch.rand(shape[0], dtype=torch.float64)
    keys = torch.randint(0, 2**20, (shape[0], 5))
    return torch.randn(shape), alpha.sqrt(), (1 - alpha).sqrt(), torch.randn(shape), keys


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("target", [None, *TARGETS])
@pytest.mark.parametrize("shape", SHAPES)
def test_given_noise(shape: tuple[int, ...], target: str | None) -> None:
    x0, signal, sigma, noise, _ = inputs(shape)
    got = add_noise(x0, signal, sigma, noise=noise, target=target)
    noisy, wanted = reference_add_noise(x0.double(), signal, sigma, noise.double(), None, target or "")
    assert got.noisy.shape == x0.shape and error(got.noisy, noisy) <= 1e-6
    if target is None:
        assert got.target is None
    else:
        assert got.target is not None and error(got.target, wanted) <= 1e-6


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("target", [None, *TARGETS])
@pytest.mark.parametrize("shape", SHAPES)
def test_generated_noise(shape: tuple[int, ...], target: str | None) -> None:
    x0, signal, sigma, _, keys = inputs(shape)
    eps = reference_philox_normal(keys, x0[0].numel() if shape[0] else 8).reshape(shape).double()
    got = add_noise(x0, signal, sigma, keys=keys, target=target)
    noisy, wanted = reference_add_noise(x0.double(), signal, sigma, eps, None, target or "")
    torch.testing.assert_close(got.noisy.double(), noisy, rtol=1e-6, atol=2e-6)
    if target is not None:
        assert got.target is not None
        torch.testing.assert_close(got.target.double(), wanted, rtol=1e-6, atol=2e-6)


@pytest.mark.usefixtures("isa")
def test_a_row_does_not_depend_on_its_batch() -> None:
    x0, signal, sigma, _, keys = inputs((6, 999))
    together = add_noise(x0, signal, sigma, keys=keys, target="v")
    for i in range(6):
        alone = add_noise(
            x0[i : i + 1], signal[i : i + 1], sigma[i : i + 1], keys=keys[i : i + 1], target="v"
        )
        assert torch.equal(together.noisy[i], alone.noisy[0])
        assert together.target is not None and alone.target is not None
        assert torch.equal(together.target[i], alone.target[0])


def test_official_numbers() -> None:
    golden = np.load(Path(__file__).parent / "golden" / "train_loss_tiny.npz")
    schedule = np.load(Path(__file__).parent / "golden" / "schedule_main_1e-4_2e-2.npz")
    x0, noise, t = (torch.from_numpy(golden[name]) for name in ("x0", "noise", "t"))
    alpha = torch.from_numpy(schedule["alphas_cumprod"])[t].flatten().double()
    rows = (t.numel(), *x0.shape[t.dim() :])
    got = add_noise(x0.reshape(rows), alpha.sqrt(), (1 - alpha).sqrt(), noise=noise.reshape(rows))
    torch.testing.assert_close(
        got.noisy.reshape(x0.shape), torch.from_numpy(golden["x_noisy"]), rtol=1e-5, atol=1e-6
    )


def test_gradient_flows_through_the_reference() -> None:
    x0, signal, sigma, noise, _ = inputs((2, 5))
    leaf = x0.double().requires_grad_()
    torch.autograd.gradcheck(lambda x: add_noise(x, signal, sigma, noise=noise.double(), target="v"), (leaf,))


def test_wrong_arguments() -> None:
    x0, signal, sigma, noise, keys = inputs((3, 7))
    for both in ({}, {"noise": noise, "keys": keys}):
        with pytest.raises(ConfigError, match="noise and keys"):
            add_noise(x0, signal, sigma, **both)
    with pytest.raises(ConfigError, match="target"):
        add_noise(x0, signal, sigma, noise=noise, target="score")
    with pytest.raises(TensorError, match="signal"):
        add_noise(x0, signal[:2], sigma, noise=noise)
    with pytest.raises(TensorError, match="noise"):
        add_noise(x0, signal, sigma, noise=noise[:, :3])
    with pytest.raises(TensorError, match="noise keys"):
        add_noise(x0, signal, sigma, keys=keys[:2])
    with pytest.raises(TensorError, match="x0"):
        add_noise(x0.long(), signal, sigma, noise=noise)


@pytest.mark.parametrize("target", ["", "eps", "v", "flow"])
def test_opcheck(target: str) -> None:
    x0, signal, sigma, noise, keys = inputs((3, 7))
    torch.library.opcheck(torch.ops.ardiff.add_noise.default, (x0, signal, sigma, None, keys, target))
    torch.library.opcheck(torch.ops.ardiff.add_noise.default, (x0, signal, sigma, noise, None, target))


def test_arrays_of_other_libraries() -> None:
    x0, signal, sigma, noise, keys = inputs((3, 7))
    arrays = [value.numpy() for value in (x0, signal, sigma)]
    got = add_noise(*arrays, noise=noise.numpy())
    assert torch.equal(got.noisy, add_noise(x0, signal, sigma, noise=noise).noisy)
    got = add_noise(*arrays, keys=keys.numpy())
    assert torch.equal(got.noisy, add_noise(x0, signal, sigma, keys=keys).noisy)
    with pytest.raises(TensorError, match="noise"):
        add_noise(x0, signal, sigma, noise=noise.tolist())  # type: ignore[arg-type]
