# SPDX-License-Identifier: Apache-2.0
"""Plans over whole windows: parts, trapezoids and tracks, and the matrices of SkyReels-V2 and Diffusion
Forcing in all their sizes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ar_diffusion import tiny

from ardiff_engine import NoiseSchedule, plan, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory import RecomputedWindow, Windows
from ardiff_engine.memory.windows import overlapping, trailing
from ardiff_engine.systems.trace import ANY_NETWORK

GOLDEN = Path(__file__).parent / "golden" / "systems"


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def levels(made: plan.Plan) -> np.ndarray:
    """Steps finished, before each tick and after the last."""
    frames = range(made.num_frames or 0)
    return np.array([[made.level(f, n) for f in frames] for n in range((made.num_ticks or 0) + 1)])


@pytest.mark.parametrize("code", ["original", "diffusers"])
def test_skyreels_matrices(code: str) -> None:
    official = golden("skyreels_v2_matrices")
    names = [name.removesuffix("__timestep") for name in official if name.endswith("__timestep")]
    names = [name for name in names if name.startswith(code)]
    assert len(names) >= 5
    for name in names:
        frames, base, steps, lag, prefix, block = map(int, re.findall(r"(\d+)", name.split("__")[1]))
        made = plan.blocks(block, lag=min(lag, steps)).plan(frames, (steps,), prefix)
        rows = official[f"{name}__update"]
        assert made.num_ticks == len(rows), name
        for n, (update, counter) in enumerate(zip(rows, official[f"{name}__counter"], strict=True)):
            tick = made.tick(n)
            assert tick.frames == tuple(update.nonzero()[0]), (name, n)
            assert tick.levels == tuple(counter[list(tick.frames)] - 1), (name, n)
            # The window grows over what has started: that of memory.RecomputedWindow.
            end = max(base, made.newest(n) + 1)
            assert official[f"{name}__window"][n].tolist() == [end - base, end], (name, n)


def test_diffusion_forcing_matrices() -> None:
    official = golden("diffusion_forcing_matrices")
    for name, matrix in official.items():
        kind, *numbers = re.findall(r"[a-z]+(?=_)|[0-9.]+", name)
        steps, uncertainty, frames = int(numbers[0]), float(numbers[1]), int(numbers[2])
        if kind == "pyramid":
            made = plan.pyramid(uncertainty).plan(frames, (steps,))
            assert (steps - levels(made)).tolist() == matrix.tolist(), name
            continue
        assert kind == "trapezoid"
        # Its faults: the last frame is behind by one, an even number of frames leaves the middle one out, and
        # the number of rows is not that of the ticks.
        expected = steps - levels(plan.trapezoid(uncertainty, behind=1).plan(frames, (steps,)))
        if frames % 2 == 0:
            expected[:, frames // 2] = 0
        rows = min(len(expected), len(matrix))
        assert expected[:rows].tolist() == matrix[:rows].tolist(), name
        assert not matrix[rows:].any(), name


def test_a_trapezoid_without_faults_is_even() -> None:
    made = plan.trapezoid(1.0).plan(6, (3,))
    made.verify()
    found = levels(made)
    assert (found == found[:, ::-1]).all() and (found[-1] == 3).all()


def test_parts_follow_each_other() -> None:
    made = plan.parts(plan.blocks(2, lag=1), [4, 8]).plan(10, (3,), 2)
    made.verify()
    whole = [plan.blocks(2, lag=1).plan(end, (3,), begin) for begin, end in ((2, 4), (4, 8), (8, 10))]
    assert made.num_ticks == sum(part.num_ticks or 0 for part in whole)
    assert [made.tick(n).frames for n in range(3)] == [(2, 3)] * 3
    assert made.continued(4).tick(0).frames == (4, 5)
    with pytest.raises(PlanError):
        plan.parts(plan.blocks(1), [4]).plan(None, (3,))


def test_tracks() -> None:
    made = plan.together([0, 1, 1]).plan(3, (4, 4))
    made.verify()
    assert [made.track(f) for f in range(3)] == [0, 1, 1]
    for bad in ((4, (4, 4)), (3, (4,)), (3, (4, 3))):
        with pytest.raises(PlanError):
            plan.together([0, 1, 1]).plan(*bad)


def test_windows() -> None:
    assert overlapping(10, 6, 2) == ((0, 6), (4, 10)) and overlapping(9, 6, 2) == ((0, 6), (4, 9))
    assert trailing([3, 5, 8], 4) == ((0, 3), (1, 5), (4, 8))
    with pytest.raises(ConfigError):
        Windows(((4, 6), (0, 8)))
    with pytest.raises(ConfigError):
        Windows(((0, 6),)).check(plan.blocks(1).plan(7, (2,)), ANY_NETWORK)
    joint, causal = (Windows(((0, 6),), joint).network(ANY_NETWORK) for joint in (True, False))
    assert not joint.forgets and joint.frames_see_later and not causal.forgets
    assert not causal.frames_see_later


def test_a_table_is_a_solver() -> None:
    rows = solvers.DDIM(NoiseSchedule.linear(1e-4, 0.02), 4).coefficients
    own = solvers.Table([999.0, 700.0, 300.0, 0.0, 0.0], rows, waiting=999.0, prediction="x0")
    assert own.num_steps == 4 and isinstance(own, solvers.Solver)
    with pytest.raises(ConfigError):
        solvers.Table([999.0, 0.0], rows, waiting=999.0)


def test_ddim_rows_are_those_of_ddim() -> None:
    schedule = NoiseSchedule.linear(1e-4, 0.02)
    for eta in (0.0, 0.7):
        own = solvers.DDIM(schedule, 5, eta=eta, prediction="eps")
        spaced = solvers.spaced_steps(schedule, 5)
        rows = solvers.ddim_rows(torch.cat([spaced.alphas, spaced.alphas_next[-1:]]), "eps", eta)
        torch.testing.assert_close(rows, own.coefficients, rtol=0, atol=1e-4)  # DDIM rounds some


@pytest.mark.parametrize("positions", ["rope", "absolute"])
def test_the_engine_serves_windows_one_after_the_other(positions: str) -> None:
    """A long video is two short ones, the second of which begins with the last frames of the first."""
    model = tiny("share_norm", "none", positions)
    size, overlap, frames = 4, 1, 7
    solver = solvers.DDIM(NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000), 3)
    cell = (model.config.tokens_per_frame, model.config.channels)
    noise = torch.randn(frames, *cell, generator=torch.Generator().manual_seed(1))
    engine = Engine(model, solver=solver, memory=RecomputedWindow(size), max_pages=200)
    first = engine.submit(Request(num_frames=size, lag=2, latents=noise[:size])).result()
    again = Request(num_frames=size, lag=2, latents=noise[size:], prefix=first[-overlap:])
    second = engine.submit(again).result()
    windows = overlapping(frames, size, overlap)
    rule = plan.parts(plan.blocks(1, lag=2), [stop for _, stop in windows])
    long = Request(num_frames=frames, plan=rule, memory=Windows(windows), latents=noise)
    found = engine.submit(long).result()
    torch.testing.assert_close(found, torch.cat([first, second[overlap:]]), rtol=0, atol=1e-5)
