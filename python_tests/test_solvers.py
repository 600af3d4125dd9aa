# SPDX-License-Identifier: Apache-2.0
"""Solver tables against the official DDIM arrays, textbook samplers and an oracle network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM, DDPM, Solver, spaced_steps
from ardiff_engine.errors import ConfigError
from ardiff_engine.ops.solver_step import solver_step

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL = {
    "schedule_main_1e-4_2e-2": NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000),
    "schedule_df_8.5e-4_1.2e-2": NoiseSchedule.sqrt_linear(8.5e-4, 1.2e-2, 1000),
}
SCHEDULE = OFFICIAL["schedule_main_1e-4_2e-2"]
PREDICTIONS = ("x0", "eps", "v")
Network = Callable[[torch.Tensor, int], torch.Tensor]


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("num_steps", [25, 50, 100])
def test_official_ddim_arrays(name: str, num_steps: int) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    steps = spaced_steps(OFFICIAL[name], num_steps)
    solver = DDIM(OFFICIAL[name], num_steps)
    np.testing.assert_array_equal(steps.timesteps.flip(0), golden[f"ddim{num_steps}_timesteps"])
    for ours, key in ((steps.alphas, "alphas"), (steps.alphas_next, "alphas_prev")):
        official = golden[f"ddim{num_steps}_{key}"][:num_steps]
        np.testing.assert_array_equal(ours.flip(0).numpy().astype(np.float32), official)
    np.testing.assert_array_equal(solver.coefficients[:, 4], golden[f"ddim{num_steps}_sigmas"][:num_steps])
    np.testing.assert_array_equal(solver.timesteps[:num_steps].flip(0), golden[f"ddim{num_steps}_timesteps"])


def test_fifty_steps_of_a_thousand() -> None:
    solver = DDIM(SCHEDULE)
    assert solver.timesteps.dtype == torch.float64
    assert solver.timesteps.tolist() == [*range(981, 0, -20), 1]
    assert solver.waiting_timestep == 999.0
    assert solver.num_steps == 50
    assert solver.coefficients.dtype == torch.float64
    assert solver.coefficients.shape == (50, 9)
    assert not solver.coefficients[:, 5:8].any() and bool(solver.coefficients[:, 8].isinf().all())


@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule.cosine(37), NoiseSchedule.linear(1e-3, 0.1, 1)])
def test_every_number_of_steps_gives_that_many(schedule: NoiseSchedule) -> None:
    total = schedule.num_timesteps
    for num_steps in {1, 2, 3, 7, 30, 36, 333, 500, 501, 999, total} & set(range(1, total + 1)):
        solver = DDIM(schedule, num_steps)
        assert len(solver.timesteps) == num_steps + 1
        assert bool((solver.timesteps[:num_steps].diff() < 0).all())
        assert solver.timesteps[-1] == solver.timesteps[-2]
        assert 0 <= solver.timesteps.min() and solver.timesteps.max() < total
        assert bool(torch.isfinite(solver.coefficients[:, :8]).all())
        steps = spaced_steps(schedule, num_steps)
        assert bool((steps.alphas_next > steps.alphas).all())
        assert torch.equal(steps.alphas_next[:-1], steps.alphas[1:])
        last = schedule.alphas_cumprod[0].item() if num_steps < total else 1.0
        assert steps.alphas_next[-1].item() == last


def run(
    solver: Solver, network: Network, x: torch.Tensor, noise: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Every x' and x̂0 on the way from noise to clean through the coefficient table and the op, in float64."""
    states, clean = [], []
    for k, row in enumerate(solver.coefficients):
        out = network(x, int(solver.timesteps[k]))
        rows = row.expand(len(x), 9)
        result = solver_step(x, out[None], torch.ones(1, len(x), dtype=x.dtype), rows, noise=noise[k])
        x = result.x
        states.append(x)
        clean.append(result.x0)
    return states, clean


def a_network(prediction: str) -> Network:
    """Some smooth function of (x, t), different for every parametrisation."""
    shift = PREDICTIONS.index(prediction)
    return lambda x, t: torch.tanh(x * math.cos(t / 300 + shift)) + 0.1 * math.sin(t / 70)


def textbook_x0(x: torch.Tensor, out: torch.Tensor, bar: float, prediction: str) -> torch.Tensor:
    if prediction == "x0":
        return out
    if prediction == "eps":
        return (x - math.sqrt(1 - bar) * out) / math.sqrt(bar)
    return math.sqrt(bar) * x - math.sqrt(1 - bar) * out


def textbook_ddim(
    bars: list[float],
    num_steps: int,
    eta: float,
    prediction: str,
    clamp: float | None,
    network: Network,
    x: torch.Tensor,
    noise: torch.Tensor,
) -> list[torch.Tensor]:
    """Song et al. 2021, equations 12 and 16, step by step; the next ᾱ is a float32, as officially."""
    times = [i * len(bars) // num_steps + 1 for i in range(num_steps)]
    rounded = [float(np.float32(bar)) for bar in bars]
    states = []
    for k, i in enumerate(reversed(range(num_steps))):
        bar, after = bars[times[i]], rounded[times[i - 1]] if i else rounded[0]
        x0 = textbook_x0(x, network(x, times[i]), bar, prediction)
        if clamp is not None:
            x0 = torch.clamp(x0, -clamp, clamp)
        eps = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
        deviation = eta * math.sqrt((1 - after) / (1 - bar)) * math.sqrt(1 - bar / after)
        x = math.sqrt(after) * x0 + math.sqrt(1 - after - deviation**2) * eps + deviation * noise[k]
        states.append(x)
    return states


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("num_steps", "eta", "clamp"), [(50, 0.0, None), (30, 0.6, None), (10, 1.0, 0.7)])
def test_ddim_equals_the_textbook_step_by_step(
    prediction: str, num_steps: int, eta: float, clamp: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    noise = torch.randn(num_steps, 3, 8, dtype=torch.float64, generator=generator)
    solver = DDIM(SCHEDULE, num_steps, eta, prediction, clamp)
    network = a_network(prediction)
    bars = SCHEDULE.alphas_cumprod.tolist()
    expected = textbook_ddim(bars, num_steps, eta, prediction, clamp, network, x, noise)
    states, _ = run(solver, network, x, noise)
    for ours, theirs in zip(states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_equals_the_textbook_step_by_step(prediction: str) -> None:
    generator = torch.Generator().manual_seed(1)
    schedule = NoiseSchedule.sqrt_linear(1e-3, 0.05, 40)
    x = torch.randn(3, 8, dtype=torch.float64, generator=generator)
    noise = torch.randn(40, 3, 8, dtype=torch.float64, generator=generator)
    network = a_network(prediction)
    states, _ = run(DDPM(schedule, 40, prediction), network, x, noise)
    betas = schedule.betas.tolist()
    for k, t in enumerate(reversed(range(40))):
        alpha, bar = 1 - betas[t], math.prod(1 - b for b in betas[: t + 1])
        before = math.prod(1 - b for b in betas[:t])
        x0 = textbook_x0(x, network(x, t), bar, prediction)
        eps = (x - math.sqrt(bar) * x0) / math.sqrt(1 - bar)
        mean = (x - betas[t] / math.sqrt(1 - bar) * eps) / math.sqrt(alpha)
        x = mean + math.sqrt(betas[t] * (1 - before) / (1 - bar)) * noise[k]
        torch.testing.assert_close(states[k], x, rtol=1e-9, atol=1e-9)


def test_ddpm_over_all_timesteps_is_the_official_posterior() -> None:
    golden = np.load(GOLDEN / "schedule_main_1e-4_2e-2.npz")
    solver = DDPM(SCHEDULE, 1000)
    assert solver.timesteps.tolist() == [*range(999, -1, -1), 0]
    table = solver.coefficients.flip(0).numpy()
    np.testing.assert_allclose(table[:, 3], golden["posterior_mean_coef1"], rtol=1e-6)
    np.testing.assert_allclose(table[:, 2], golden["posterior_mean_coef2"], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(table[:, 4] ** 2, golden["posterior_variance"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 20, 50, 1000])
def test_ddim_with_eta_one_is_ddpm(num_steps: int) -> None:
    ddim, ddpm = DDIM(SCHEDULE, num_steps, eta=1.0), DDPM(SCHEDULE, num_steps)
    # DDIM's float32 ᾱ' moves 1 − ᾱ' by up to 2e-4 of itself.
    torch.testing.assert_close(ddim.coefficients, ddpm.coefficients, rtol=3e-4, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [1, 7, 50, 1000])
def test_ddim_with_an_oracle_keeps_x0_and_noise_at_every_level(prediction: str, num_steps: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x0, eps = torch.randn(2, 4, 6, dtype=torch.float64, generator=generator)
    solver, steps = DDIM(SCHEDULE, num_steps, prediction=prediction), spaced_steps(SCHEDULE, num_steps)

    def oracle(x: torch.Tensor, t: int) -> torch.Tensor:
        return SCHEDULE.target(x0, eps, torch.full((4,), t), prediction)

    start = SCHEDULE.add_noise(x0, eps, torch.full((4,), int(steps.timesteps[0])))
    states, clean = run(solver, oracle, start, torch.zeros(num_steps, 4, 6, dtype=torch.float64))
    for k in range(num_steps):
        bar = steps.alphas_next[k].item()
        level = math.sqrt(bar) * x0 + math.sqrt(1 - bar) * eps
        # The float32 ᾱ' moves the noise weight by up to 1e-6, once per level.
        torch.testing.assert_close(states[k], level, rtol=0, atol=1e-5)
        torch.testing.assert_close(clean[k], x0, rtol=0, atol=3e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_ddim_step_with_an_oracle_is_exact(prediction: str) -> None:
    generator = torch.Generator().manual_seed(4)
    x0, eps = torch.randn(2, 50, 6, dtype=torch.float64, generator=generator)
    solver, steps = DDIM(SCHEDULE, 50, prediction=prediction), spaced_steps(SCHEDULE, 50)
    x = SCHEDULE.add_noise(x0, eps, steps.timesteps)
    out = SCHEDULE.target(x0, eps, steps.timesteps, prediction)
    result = solver_step(x, out[None], torch.ones(1, 50, dtype=torch.float64), solver.coefficients)
    bar = steps.alphas_next.float().double()[:, None]
    torch.testing.assert_close(result.x0, x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.x, bar.sqrt() * x0 + (1 - bar).sqrt() * eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [DDIM(SCHEDULE, 20, 0.5), DDIM(SCHEDULE, 50, 1.0), DDPM(SCHEDULE, 35)])
def test_stochastic_steps_keep_the_noise_level(solver: DDIM | DDPM) -> None:
    """With a perfect x̂0, x has the mean and the variance of the next level after each step."""
    steps = spaced_steps(SCHEDULE, solver.num_steps)
    after = steps.alphas_next.float().double() if isinstance(solver, DDIM) else steps.alphas_next
    a, b, e = solver.coefficients[:, 2:5].unbind(1)
    mean = a * steps.alphas.sqrt() + b
    variance = a**2 * (1 - steps.alphas) + e**2
    torch.testing.assert_close(mean, after.sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(variance, 1 - after, rtol=1e-9, atol=0)


def test_levels_closer_than_float32_can_tell_apart_give_no_nan() -> None:
    schedule = NoiseSchedule.linear(1e-10, 1e-9, 1000)
    for eta in (0.0, 1.0):
        assert bool(torch.isfinite(DDIM(schedule, 500, eta).coefficients[:, :8]).all())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_float32_op_follows_the_float64_table(prediction: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, out = torch.randn(2, 50, 9, generator=generator)
    table = DDIM(SCHEDULE, 50, 0.0, prediction).coefficients
    got = solver_step(x, out[None], torch.ones(1, 50), table.float())
    p, q, a, b = (table[:, [i]] for i in range(4))
    x0 = p * x.double() + q * out.double()
    torch.testing.assert_close(got.x0.double(), x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.x.double(), a * x.double() + b * x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 50.0, True])
@pytest.mark.parametrize("kind", [DDIM, DDPM])
def test_steps_out_of_range_are_refused(kind: type, num_steps: object) -> None:
    with pytest.raises(ConfigError):
        kind(SCHEDULE, num_steps)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ConfigError):
        DDIM(SCHEDULE, eta=eta)


@pytest.mark.parametrize("kind", [DDIM, DDPM])
def test_unknown_prediction_and_bad_clamp_are_refused(kind: type) -> None:
    with pytest.raises(ConfigError):
        kind(SCHEDULE, 50, prediction="flow")
    for clamp in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError):
            kind(SCHEDULE, 50, clamp=clamp)


def test_equal_settings_are_equal_solvers() -> None:
    assert DDIM(SCHEDULE, 50) == DDIM(NoiseSchedule.sqrt_linear(), 50)
    assert DDIM(SCHEDULE, 50) != DDIM(SCHEDULE, 50, eta=0.1)


@pytest.mark.parametrize("kind", [DDIM, DDPM])
def test_settings_of_other_types(kind: type) -> None:
    solver = kind(SCHEDULE, np.int64(50))
    assert solver == kind(SCHEDULE, 50) and type(solver.num_steps) is int
    assert torch.equal(solver.coefficients, kind(SCHEDULE, 50).coefficients)
    for bad in ("a", [1.0]):
        with pytest.raises(ConfigError, match="clamp"):
            kind(SCHEDULE, 50, clamp=bad)
        with pytest.raises(ConfigError, match="steps"):
            kind(SCHEDULE, bad)
    for bad in ("a", None):
        with pytest.raises(ConfigError, match="eta"):
            DDIM(SCHEDULE, 50, eta=bad)


def test_few_steps_start_far_from_noise_as_documented() -> None:
    assert [int(spaced_steps(SCHEDULE, n).timesteps[0]) for n in (50, 4, 2, 1)] == [981, 751, 501, 1]
