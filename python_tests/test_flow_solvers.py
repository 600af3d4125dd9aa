# SPDX-License-Identifier: Apache-2.0
"""Flow schedules and solvers against the numbers of the official codes, diffusers' schedulers step by step,
and an exact straight path."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import ardiff_engine as ade
from ardiff_engine.diffusion.solvers import DPMSolver, Euler, Renoise, RisingEuler, Solver, UniPC, look_back
from ardiff_engine.diffusion.solvers.sigma_grids import sigma_grid
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.ops.solver_step import solver_step

GOLDEN = Path(__file__).parent / "golden"
TOY = np.load(GOLDEN / "systems" / "solvers.npz")
FLOW = np.load(GOLDEN / "wan" / "flow_schedule.npz")
MULTISTEP = {name: np.load(GOLDEN / "wan" / f"{name}.npz") for name in ("multistep_flow", "multistep_wan")}


def solvers(steps: int, shift: float) -> dict[str, Solver]:
    """Name in the golden files -> our solver with the same grid."""
    flow = ade.FlowSchedule(shift)
    return {
        "self_forcing_flow_euler": Euler(flow, steps),
        "diffusers_flow_euler": Euler(flow, steps, grid="shifted_twice"),
        "diffusers_unipc_flow_bh1_order2": UniPC(flow, steps, 2, bh=1),
        "diffusers_unipc_flow_bh2_order1": UniPC(flow, steps, 1),
        "diffusers_unipc_flow_bh2_order2": UniPC(flow, steps, 2),
        "diffusers_unipc_flow_bh2_order3": UniPC(flow, steps, 3),
        "wan_unipc_flow_bh2_order2": UniPC(flow, steps),
        "wan_dpmpp_flow": DPMSolver(flow, steps),
        "diffusers_dpmpp_2m_flow": DPMSolver(flow, steps, grid="below_one"),
    }


def advance(solver: Solver, k: int, x: torch.Tensor, out: torch.Tensor, history: list[torch.Tensor]):
    """One step through the op, in the dtype of x; all rows of x at level k."""
    rows = solver.coefficients[k].to(x.dtype).expand(len(x), 9)
    past: list[torch.Tensor | None] = [*history, None, None, None][:3]
    one = torch.ones(1, len(x), dtype=x.dtype)
    return solver_step(x, out[None], one, rows, history1=past[0], history2=past[1], history3=past[2])


def walk(solver: Solver, network, x: torch.Tensor) -> torch.Tensor:
    """Every state from noise to data [S + 1, ...]; network(x, k) -> out."""
    states, history = [x], []
    for k in range(solver.num_steps):
        result = advance(solver, k, x, network(x, k), history)
        x, history = result.x, [result.x0, *history][: look_back(solver.coefficients)]
        states.append(x)
    return torch.stack(states)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("name", solvers(4, 1.0))
def test_official_walks(name: str, steps: int, shift: float) -> None:
    solver, key = solvers(steps, shift)[name], f"{name}__S{steps}_shift{int(shift)}__"
    got = walk(solver, lambda x, k: 0.3 * x + 0.05, torch.from_numpy(TOY["x_start"])[None])[:, 0]
    want = torch.from_numpy(TOY[key + "x"])
    if name.startswith("diffusers_unipc_flow_bh1"):
        # diffusers' last step is 0 · ∞ with bh 1; ours ends in x̂0, as with bh 2.
        assert want[-1].isnan().all() and got[-1].isfinite().all()
        got, want = got[:-1], want[:-1]
    assert error(got, want) <= 1e-6
    np.testing.assert_allclose(solver.timesteps[:-1], TOY[key + "timesteps"], rtol=1e-6)


@pytest.mark.parametrize("shift", [3.0, 5.0])
@pytest.mark.parametrize(
    ("name", "kind", "file", "options"),
    [
        ("unipc", UniPC, "multistep_flow", {"grid": "above_zero"}),
        ("unipc3", UniPC, "multistep_flow", {"grid": "above_zero", "order": 3}),
        ("dpmpp2m", DPMSolver, "multistep_flow", {"grid": "below_one"}),
        ("euler", Euler, "multistep_flow", {"grid": "shifted_twice"}),
        ("wan_unipc", UniPC, "multistep_wan", {}),
        ("wan_dpmpp", DPMSolver, "multistep_wan", {}),
    ],
)
def test_official_walks_with_a_network(name: str, kind, file: str, options, shift: float) -> None:
    golden, key = MULTISTEP[file], f"{name}_shift{int(shift)}_10_"
    solver = kind(ade.FlowSchedule(shift), 10, **options)
    mixed, sigmas = torch.from_numpy(golden["A64"]), torch.from_numpy(golden[key + "sigmas"]).double()

    def network(x: torch.Tensor, k: int) -> torch.Tensor:
        return x @ mixed.T * (1 - sigmas[k] / 2) + 0.2 * sigmas[k]

    want = torch.from_numpy(golden[key + "x"]).double()
    got = walk(solver, network, want[0])
    assert error(got, want) <= 1e-5
    np.testing.assert_allclose(solver.timesteps[:-1], golden[key + "timesteps"], rtol=1e-6)


@pytest.mark.parametrize("steps", [5, 12])
@pytest.mark.parametrize("name", ["unipc1", "unipc2", "unipc3", "dpm1", "dpm2", "euler"])
def test_frames_at_different_levels_against_diffusers(name: str, steps: int) -> None:
    """One scheduler object per frame there, one row per frame here; frame f starts in pass f."""
    diffusers = pytest.importorskip("diffusers")
    shift, frames = 3.0, 4
    flow = ade.FlowSchedule(shift)
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    if name == "euler":
        grid = "shifted_twice"
        ours: Solver = Euler(flow, steps, grid=grid)
        make = lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)  # noqa: E731
    elif name.startswith("dpm"):
        grid = "below_one"
        ours = DPMSolver(flow, steps, int(name[-1]), grid=grid)
        make = lambda: diffusers.DPMSolverMultistepScheduler(solver_order=int(name[-1]), **settings)  # noqa: E731
    else:
        order = int(name[-1])
        make = lambda: diffusers.UniPCMultistepScheduler(solver_order=order, **settings)  # noqa: E731
        grid = "above_zero"
        ours = UniPC(flow, steps, order, grid=grid)
    theirs = [make() for _ in range(frames)]
    for scheduler in theirs:
        scheduler.set_timesteps(steps)
        exact = sigma_grid(flow, grid, steps, whole=False).sigmas
        np.testing.assert_allclose(scheduler.sigmas, exact, rtol=1e-6, atol=1e-7)
        scheduler.sigmas = exact  # 1 − σ of a float32 near 1 would be off by 1e-4 of itself
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(frames, 2, 3, dtype=torch.float64, generator=generator)
    expected = list(x.clone())
    history: list[list[torch.Tensor]] = [[] for _ in range(frames)]
    for tick in range(steps + frames - 1):
        for frame in range(frames):
            level = tick - frame
            if not 0 <= level < steps:
                continue
            state = x[frame : frame + 1]
            out = torch.tanh(state) * 0.7 + 0.1 * math.cos(level)
            result = advance(ours, level, state, out, history[frame])
            x[frame], history[frame] = result.x[0], [result.x0, *history[frame]][:3]
            before = expected[frame][None]
            theirs_out = torch.tanh(before) * 0.7 + 0.1 * math.cos(level)
            told = theirs[frame].timesteps[level]
            expected[frame] = theirs[frame].step(theirs_out, told, before).prev_sample[0]
            assert error(x[frame], expected[frame]) <= 1e-6, (tick, frame)


@pytest.mark.parametrize("shift", [3.0, 5.0, 8.0])
def test_official_table(shift: float) -> None:
    flow, key = ade.FlowSchedule(shift), f"shift{int(shift)}_"
    np.testing.assert_allclose(flow.sigmas, FLOW[key + "sigmas"], rtol=1e-6)
    np.testing.assert_allclose(flow.timesteps, FLOW[key + "timesteps"], rtol=1e-6)
    np.testing.assert_allclose(flow.loss_weights(), FLOW[key + "training_weights"], rtol=1e-5, atol=1e-6)
    for steps in json.loads(str(FLOW["config"]))["lists"]:
        name = key + "warp_" + "_".join(map(str, steps))
        np.testing.assert_allclose(flow.warp(steps), FLOW[name], rtol=1e-6)
    t, x0, noise = (torch.from_numpy(FLOW[f"probe_{name}"]) for name in ("t", "x0", "noise"))
    np.testing.assert_array_equal(flow.nearest(t), FLOW[key + "probe_index"])
    np.testing.assert_allclose(
        flow.add_noise(x0, noise, t), FLOW[key + "probe_add_noise"], rtol=1e-5, atol=1e-6
    )
    recovered = flow.to_x0(x0, noise, t, "flow")
    np.testing.assert_allclose(recovered, FLOW[key + "probe_x0_from_flow"], rtol=1e-5, atol=1e-6)
    for steps in (50, 4):
        euler = Euler(flow, steps)
        np.testing.assert_allclose(euler.timesteps[:-1], FLOW[f"{key}{steps}_timesteps"], rtol=1e-6)


@pytest.mark.parametrize("prediction", ["x0", "eps", "flow"])
@pytest.mark.parametrize("kind", [Euler, UniPC, DPMSolver])
def test_a_perfect_network_reaches_the_data(kind, prediction: str) -> None:
    """With the true x0 every solver stays on the straight line between data and noise."""
    if prediction == "eps" and kind is not UniPC:
        pytest.skip("their first σ is 1: ε says nothing about x0 there")
    flow = ade.FlowSchedule(5.0)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 8, dtype=torch.float64, generator=generator)
    solver = kind(flow, 6, prediction=prediction)
    first = float(solver.coefficients[0, 1].abs()) if prediction == "flow" else None
    sigma = first if first is not None else float(-kind(flow, 6).coefficients[0, 1])
    signs = {"x0": x0, "eps": noise, "flow": noise - x0}
    states = walk(solver, lambda x, k: signs[prediction], (1 - sigma) * x0 + sigma * noise)
    torch.testing.assert_close(states[-1], x0, rtol=0, atol=1e-9)


def test_renoise_is_the_few_step_rule() -> None:
    flow = ade.FlowSchedule(5.0)
    solver = Renoise(flow, flow.warp([1000, 750, 500, 250]), commit=0.0)
    np.testing.assert_allclose(solver.timesteps, [1000, 937.5, 2500 / 3, 625, 0], rtol=1e-6)
    generator = torch.Generator().manual_seed(1)
    x, out, eps = torch.randn(3, 2, 7, dtype=torch.float64, generator=generator)
    for k in range(4):
        sigma, after = (float(flow.sigma(solver.timesteps[[i]])) for i in (k, k + 1))
        rows = solver.coefficients[[k]].expand(2, 9)
        got = solver_step(x, out[None], torch.ones(1, 2, dtype=torch.float64), rows, noise=eps)
        clean = x - sigma * out
        want = clean if k == 3 else (1 - after) * clean + after * eps
        torch.testing.assert_close(got.x, want, rtol=1e-12, atol=1e-12)


def test_timesteps_outside_the_table_mean_the_nearest_entry() -> None:
    flow = ade.FlowSchedule(8.0)
    for t in (757.0, 522.0, 1000.0, 0.0, 3.3):
        index = int((flow.timesteps - t).abs().argmin())
        assert int(flow.nearest(torch.tensor([t]))[0]) == index
    with pytest.raises(TensorError):
        flow.sigma(torch.tensor([1000.5]))
    with pytest.raises(TensorError):
        flow.sigma(torch.tensor([float("nan")]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ade.FlowSchedule(0.0),
        lambda: ade.FlowSchedule(math.inf),
        lambda: ade.FlowSchedule(5.0, 0),
        lambda: ade.FlowSchedule(5.0, 10**8),
        lambda: ade.FlowSchedule(5.0).warp([750.5]),
        lambda: Euler(ade.FlowSchedule(5.0), 0),
        lambda: Euler(ade.FlowSchedule(5.0), 1001),
        lambda: Euler(ade.FlowSchedule(5.0), 4, grid="karras"),
        lambda: Euler(ade.FlowSchedule(5.0), 4, prediction="v"),
        lambda: UniPC(ade.FlowSchedule(5.0), 4, order=4),
        lambda: UniPC(ade.FlowSchedule(5.0), 4, bh=3),
        lambda: DPMSolver(ade.FlowSchedule(5.0), 4, order=3),
        lambda: Renoise(ade.FlowSchedule(5.0), []),
        lambda: Renoise(ade.FlowSchedule(5.0), [500, 750]),
        lambda: Euler(ade.FlowSchedule(5.0), steps=[500, 750]),
        lambda: RisingEuler([0.0, 0.5]),
        lambda: RisingEuler([0.5, 0.0, 1.0]),
        lambda: Renoise(ade.FlowSchedule(5.0), [1000, 500], commit=-1.0),
        lambda: ade.solvers.DDIM(ade.NoiseSchedule.linear(), 4, prediction="flow"),
    ],
)
def test_bad_settings_are_refused(make) -> None:
    with pytest.raises(ConfigError):
        make()
