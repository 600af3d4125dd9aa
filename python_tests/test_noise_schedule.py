# SPDX-License-Identifier: Apache-2.0
"""Noise schedules against the official buffers and textbook identities."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.errors import ConfigError, TensorError

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL = {
    "schedule_main_1e-4_2e-2": NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000),
    "schedule_df_8.5e-4_1.2e-2": NoiseSchedule.sqrt_linear(8.5e-4, 1.2e-2, 1000),
}
PREDICTIONS = ("x0", "eps", "v")


def official_buffers(schedule: NoiseSchedule) -> dict[str, torch.Tensor]:
    """Every buffer of the official diffusion module that follows from the betas, by its textbook formula."""
    betas, bar = schedule.betas, schedule.alphas_cumprod
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    variance = betas * (1 - before) / (1 - bar)
    return {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - bar),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - bar),
    }


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_buffers_to_the_last_float32_bit_but_one(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    ours = official_buffers(OFFICIAL[name])
    assert set(ours) <= set(golden.files)
    for key, value in ours.items():
        assert value.dtype == torch.float64
        np.testing.assert_array_max_ulp(value.numpy().astype(np.float32), golden[key], maxulp=1)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_alphas_cumprod_bitwise(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    np.testing.assert_array_equal(
        OFFICIAL[name].alphas_cumprod.numpy().astype(np.float32), golden["alphas_cumprod"]
    )


def test_values_that_the_specification_quotes() -> None:
    bar = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000).alphas_cumprod
    assert bar[0].item() == pytest.approx(0.99990, abs=1e-9)
    assert bar[500].item() == pytest.approx(0.33127, abs=5e-6)
    assert bar[981].item() == pytest.approx(1.0490e-3, abs=5e-8)
    assert bar[999].item() == pytest.approx(7.334e-4, abs=5e-8)


def test_linear_betas_are_evenly_spaced() -> None:
    schedule = NoiseSchedule.linear(1e-4, 2e-2, 100)
    expected = np.linspace(1e-4, 2e-2, 100)
    np.testing.assert_allclose(schedule.betas, expected, rtol=1e-14)
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - expected), rtol=1e-13)


def test_cosine_follows_its_formula_where_beta_is_not_clipped() -> None:
    schedule = NoiseSchedule.cosine(200)
    f = [math.cos((t / 200 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(201)]
    expected = [f[t + 1] / f[0] for t in range(199)]
    np.testing.assert_allclose(schedule.alphas_cumprod[:199], expected, rtol=1e-10)
    assert schedule.betas[-1].item() == 0.999


@pytest.mark.parametrize(
    "schedule", [*OFFICIAL.values(), NoiseSchedule.linear(), NoiseSchedule.cosine(), NoiseSchedule.cosine(7)]
)
def test_noise_grows_with_the_timestep(schedule: NoiseSchedule) -> None:
    assert bool((schedule.alphas_cumprod.diff() < 0).all())
    t = torch.arange(schedule.num_timesteps)
    power = schedule.signal(t) ** 2 + schedule.sigma(t) ** 2
    np.testing.assert_allclose(power, np.ones(schedule.num_timesteps), rtol=1e-14)


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule.sqrt_linear(2e-4, 1e-2, 300),
        NoiseSchedule.linear(1e-3, 1e-2, 10),
        NoiseSchedule.cosine(50, 0.01),
    ],
)
def test_config_round_trip_through_json(schedule: NoiseSchedule) -> None:
    again = NoiseSchedule.from_config(json.loads(json.dumps(schedule.to_config())))
    assert again == schedule
    assert torch.equal(again.alphas_cumprod, schedule.alphas_cumprod)


def test_different_settings_are_different_schedules() -> None:
    assert NoiseSchedule.sqrt_linear() != NoiseSchedule.linear()
    assert NoiseSchedule.sqrt_linear(num_timesteps=10) != NoiseSchedule.sqrt_linear(num_timesteps=11)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "sigmoid"},
        {"kind": "linear", "beta_stat": 1e-4},
        {"kind": "cosine", "beta_start": 1e-4},
        {"kind": "linear", "num_timesteps": 0},
        {"kind": "linear", "num_timesteps": 10.5},
        {"kind": "linear", "beta_start": "1e-4"},
        {"kind": "linear", "beta_start": 0.0},
        {"kind": "sqrt_linear", "beta_start": 0.1, "beta_end": 0.01},
        {"kind": "sqrt_linear", "beta_end": 1.0},
        {"kind": "linear", "beta_end": math.nan},
        {"kind": "cosine", "offset": 0.0},
    ],
)
def test_bad_configs_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        NoiseSchedule.from_config(config)


def test_a_misspelt_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="beta_start"):
        NoiseSchedule.from_config({"kind": "linear", "beta_strat": 1e-4})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noising_and_v_target_equal_the_official_numbers(dtype: torch.dtype) -> None:
    golden = np.load(GOLDEN / "train_loss_tiny.npz")
    x0, noise = (torch.from_numpy(golden[key]).to(dtype) for key in ("x0", "noise"))
    t = torch.from_numpy(golden["t"])
    schedule = NoiseSchedule.sqrt_linear()
    noisy = schedule.add_noise(x0, noise, t)
    assert noisy.dtype == dtype
    np.testing.assert_allclose(noisy, golden["x_noisy"], rtol=0, atol=5e-7)
    np.testing.assert_allclose(schedule.target(x0, noise, t, "v"), golden["v_target"], rtol=0, atol=5e-7)
    for prediction, target in (("x0", x0), ("eps", noise), ("v", schedule.target(x0, noise, t, "v"))):
        assert torch.equal(schedule.target(x0, noise, t, prediction), target)
        loss = torch.mean((torch.from_numpy(golden[f"{prediction}_output"]).to(dtype) - target) ** 2)
        assert loss.item() == pytest.approx(float(golden[f"{prediction}_loss"]), rel=2e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [*OFFICIAL.values(), NoiseSchedule.cosine()])
def test_a_perfect_network_gives_back_x0_and_noise(schedule: NoiseSchedule, prediction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 5, 2, dtype=torch.float64, generator=generator)
    t = torch.tensor([[0, 1, 500, 998], [3, 250, 750, 2], [900, 0, 77, 5]])
    x_t = schedule.add_noise(x0, noise, t)
    out = schedule.target(x0, noise, t, prediction)
    torch.testing.assert_close(schedule.to_x0(x_t, out, t, prediction), x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(schedule.to_eps(x_t, out, t, prediction), noise, rtol=1e-8, atol=1e-8)


def test_half_precision_is_computed_in_float32() -> None:
    schedule = NoiseSchedule.sqrt_linear()
    generator = torch.Generator().manual_seed(1)
    x_t, out = torch.randn(2, 6, 8, generator=generator).to(torch.bfloat16)
    t = torch.tensor([999, 500, 1, 0, 250, 750])
    got = schedule.to_x0(x_t, out, t, "eps")
    exact = schedule.to_x0(x_t.double(), out.double(), t, "eps")
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=0)


def test_solver_timesteps_may_be_used_as_they_are() -> None:
    schedule = NoiseSchedule.sqrt_linear()
    whole = torch.tensor([1.0, 981.0], dtype=torch.float64)
    assert torch.equal(schedule.signal(whole), schedule.signal(whole.long()))
    with pytest.raises(TensorError):
        schedule.signal(torch.tensor([1.5]))


@pytest.mark.parametrize("t", [torch.tensor([-1]), torch.tensor([1000])])
def test_timesteps_outside_the_schedule_are_refused(t: torch.Tensor) -> None:
    with pytest.raises(TensorError):
        NoiseSchedule.sqrt_linear().sigma(t)


def test_shapes_that_do_not_fit_are_refused() -> None:
    schedule = NoiseSchedule.sqrt_linear()
    x0, t = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(TensorError):
        schedule.add_noise(x0, x0, t[:, :2])
    with pytest.raises(TensorError):
        schedule.add_noise(x0, x0[:1], t)
    with pytest.raises(TensorError):
        schedule.to_x0(x0, x0[..., :2], t, "v")
    with pytest.raises(TensorError):
        schedule.target(x0, x0, t[:, :2], "v")
    with pytest.raises(ConfigError):
        schedule.target(x0, x0, t, "flow")


def test_add_noise_to_nothing() -> None:
    schedule = NoiseSchedule.sqrt_linear()
    for shape, lead in (((0, 4, 3, 2), (0, 4)), ((2, 0, 3, 2), (2, 0)), ((2, 4, 0, 2), (2, 4))):
        x0 = torch.zeros(shape)
        assert schedule.add_noise(x0, x0, torch.zeros(lead, dtype=torch.int64)).shape == shape


@pytest.mark.parametrize("num_timesteps", ["a", None, 0, 1.5, math.nan, math.inf, [3]])
@pytest.mark.parametrize("build", [NoiseSchedule.sqrt_linear, NoiseSchedule.linear, NoiseSchedule.cosine])
def test_bad_numbers_of_timesteps(build, num_timesteps: object) -> None:
    with pytest.raises(ConfigError, match="timesteps"):
        build(num_timesteps=num_timesteps)


def test_bad_betas_and_offsets() -> None:
    for bad in ("a", None, math.nan):
        with pytest.raises(ConfigError, match="beta"):
            NoiseSchedule.sqrt_linear(bad)
        with pytest.raises(ConfigError, match="beta"):
            NoiseSchedule.linear(1e-4, bad)
        with pytest.raises(ConfigError, match="offset"):
            NoiseSchedule.cosine(10, bad)


def test_numbers_of_timesteps_of_other_types() -> None:
    for total in (np.int64(30), 30.0):
        assert NoiseSchedule.linear(num_timesteps=total) == NoiseSchedule.linear(num_timesteps=30)
