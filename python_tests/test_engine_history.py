# SPDX-License-Identifier: Apache-2.0
"""Solvers that look back, in the engine: every frame walks as it would alone, whatever happens on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ardiff_engine import Engine, FlowSchedule, NoiseSchedule, Request, solvers
from ardiff_engine.diffusion.solvers import Solver, look_back
from ardiff_engine.engine import Stream
from ardiff_engine.memory import Full
from ardiff_engine.models import CellBatch, Footprint, ModelSpec, Tables, VideoModel
from ardiff_engine.ops.solver_step import solver_step

FLOW = FlowSchedule(5.0)
STEPS = 8
SOLVERS: dict[str, Solver] = {
    "unipc1": solvers.UniPC(FLOW, STEPS, order=1),
    "unipc2": solvers.UniPC(FLOW, STEPS, order=2),
    "unipc3": solvers.UniPC(FLOW, STEPS, order=3),
    "dpm": solvers.DPMSolver(FLOW, STEPS),
    "euler": solvers.Euler(FLOW, STEPS),
    "renoise": solvers.Renoise(FLOW, FLOW.warp([1000, 750, 500, 250])),
    "ddim": solvers.DDIM(NoiseSchedule.linear(), STEPS),
}
SHAPE = (2, 3)


def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * 0.7 + 0.1 * torch.cos(t / 150)


class OwnFrameOnly(VideoModel):
    """Each frame's output depends on itself and its timestep alone, so its walk can be followed by hand."""

    device = torch.device("cpu")
    dtype = torch.float32
    spec = ModelSpec(8, SHAPE[1], tokens_per_frame=SHAPE[0], layers=1, heads=1, kv_heads=1, head_dim=2)

    def tables(self, timesteps: torch.Tensor) -> Tables:
        return Tables((torch.cat([timesteps.new_zeros(1), timesteps])[:, None, None],))

    def condition(self, given: torch.Tensor | int | None) -> torch.Tensor:
        return torch.empty(0)

    def null_condition(self) -> torch.Tensor:
        return torch.empty(0)

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        return Footprint(0, 4 * timesteps, tokens)

    def __call__(
        self, x: torch.Tensor, cells: CellBatch, tables: Tables, condition: torch.Tensor | None
    ) -> torch.Tensor:
        t = tables.parts[0][cells.frame_ids, 0]
        return velocity(x, t)


def engine(solver: Solver, *, padded: bool = False) -> Engine:
    return Engine(OwnFrameOnly(), solver=solver, memory=Full(), max_pages=200, cuda_graphs=padded)


def request(solver: Solver, frames: int, lag: int, seed: int) -> Request:
    return Request(num_frames=frames, lag=min(lag, solver.num_steps), seed=seed, solver=solver)


def walked(solver: Solver, start: torch.Tensor) -> torch.Tensor:
    """One frame in float64, by the op; no step noise."""
    x, history = start.double(), []
    for k in range(solver.num_steps):
        out = velocity(x, solver.timesteps[k])
        past: list[torch.Tensor | None] = [*history, None, None, None][:3]
        one = torch.ones(1, 1, dtype=torch.float64)
        result = solver_step(
            x[None], out[None, None], one, solver.coefficients[[k]], history1=past[0], history2=past[1],
            history3=past[2],
        )  # fmt: skip
        x, history = result.x[0], [result.x0, *history]
    return x


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("lag", [0, 1, 3, STEPS])
@pytest.mark.parametrize("name", ["unipc1", "unipc2", "unipc3", "dpm", "euler"])
def test_every_frame_walks_alone(name: str, lag: int, padded: bool) -> None:
    solver = SOLVERS[name]
    start = torch.from_numpy(np.random.RandomState(lag).standard_normal((5, *SHAPE))).float()
    given = Request(num_frames=5, lag=lag, latents=start)
    got = engine(solver, padded=padded).submit(given).result()
    want = torch.stack([walked(solver, frame) for frame in start])
    assert float((got - want).norm() / want.norm()) <= 1e-5


@pytest.mark.parametrize("padded", [False, True])
def test_all_solvers_in_one_pass_are_alone_to_the_bit(padded: bool) -> None:
    requests = [request(solver, 4, 2, seed) for seed, solver in enumerate(SOLVERS.values())]
    alone = [engine(SOLVERS["euler"]).submit(one).result() for one in requests]
    together = engine(SOLVERS["euler"], padded=padded)
    streams = []
    for one in requests:  # they join one step after the other
        streams.append(together.submit(one))
        together.step(1)
    for stream, expected in zip(streams, alone, strict=True):
        assert torch.equal(stream.result(), expected)


@pytest.mark.parametrize("name", ["unipc3", "dpm"])
@pytest.mark.parametrize("edit", ["fork", "suspend", "rollback", "extend"])
def test_edits_on_the_way_keep_the_history(name: str, edit: str) -> None:
    solver = SOLVERS[name]
    assert look_back(solver.coefficients) > 0

    def half_way() -> tuple[Engine, Stream]:
        own = engine(solver)
        stream = own.submit(request(solver, 6, 2, 5))
        for _ in range(9):
            own.step(1)
        return own, stream

    expected = engine(solver).submit(request(solver, 6, 2, 5)).result()
    own, stream = half_way()
    if edit == "fork":
        other = stream.fork()
        assert torch.equal(other.result(), expected)
    elif edit == "suspend":
        stream.suspend()
        own.submit(request(solver, 2, 1, 6)).result()
        stream.resume()
    elif edit == "rollback":
        stream.rollback(0)
    else:
        stream.extend(2)
        assert torch.equal(stream.result(), engine(solver).submit(request(solver, 8, 2, 5)).result())
        return
    assert torch.equal(stream.result(), expected)


def test_a_finished_frame_keeps_no_history() -> None:
    own = engine(SOLVERS["unipc3"])
    stream = own.submit(request(SOLVERS["unipc3"], 3, STEPS, 0))
    while not stream.done:
        own.step(1)
        assert len(stream._state.history) <= 1
    assert not stream._state.history
