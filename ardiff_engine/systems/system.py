# SPDX-License-Identifier: Apache-2.0
"""A published system as configuration: what each of them chooses, and what the engine then does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from typing import Literal

import numpy.typing as npt

from ardiff_engine.diffusion.guidance import Branch, Condition
from ardiff_engine.diffusion.solvers import Solver
from ardiff_engine.engine.request import Request
from ardiff_engine.engine.schedules import Tracks, tracks_of
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory import MemoryPolicy
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.noise import NoiseSource
from ardiff_engine.plan import Plan, Rule
from ardiff_engine.systems.calls import ANY_NETWORK, Call, CallsOf, by_kind, passes
from ardiff_engine.systems.picture import draw
from ardiff_engine.systems.toy import run_toy
from ardiff_engine.systems.trace import Trace, trace_of


def as_traced(trace: Trace) -> Trace:
    return trace


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """plan × solver × memory × noise × guidance, and what its own code does with them.

    name: for `systems.get`. title, paper, repository: who published it; paper: an arXiv number.
    plan: who is fed when. solver: of all blocks, or of each track. memory: who sees what, and where.
    noise: what its videos start from; None: independent noise for each frame.
    guidance: scale of the release; 1: none. branches_of: other guidance than by a scale, of a condition and a
        negative one. on_prompt: what a new prompt does to stored K/V (see
        `Stream.set_condition`). fps: pictures per second of its videos.
    takes_scheduler: its solver is that of a model's folder, where that names one (scheduler_config.json).
    num_frames, given_frames: of the video, for systems that need a length and those that were made for one;
        the given ones are included.
    calls_of, stores_last: how its code makes calls of the engine's passes (see `systems.calls`), and whether
        it stores the K/V of the last block. recorded: how its numbers are kept, if not as a `Trace` says.
    not_served: why the engine itself does not run it, if so; its trace needs no network.
    exact: what was compared with its own code; left_out: what of it is not expressed here, and why.
    """

    name: str
    title: str
    paper: str
    repository: str
    plan: Rule
    solver: Tracks
    memory: MemoryPolicy
    noise: NoiseSource | None = None
    guidance: float = 1.0
    branches_of: Callable[[Condition, Condition], tuple[Branch, ...]] | None = None
    on_prompt: Literal["keep", "recommit", "reset"] = "keep"
    fps: int = 16
    takes_scheduler: bool = False
    num_frames: int | None = None
    given_frames: int = 0
    calls_of: CallsOf = by_kind
    stores_last: bool = True
    recorded: Callable[[Trace], Trace] = as_traced
    not_served: str = ""
    exact: str = ""
    left_out: str = ""

    @property
    def tracks(self) -> tuple[Solver, ...]:
        return tracks_of(self.solver)

    def plan_of(self, num_frames: int | None) -> Plan:
        """The plan of a video; None: endless."""
        return self.plan.plan(num_frames, tuple(own.num_steps for own in self.tracks), self.given_frames)

    def check(self, spec: ModelSpec, num_frames: int | None = None) -> None:
        """Raise ConfigError or PlanError, with the reason, for a network that cannot run this system."""
        self._check_served()
        self.memory.check(self.plan_of(self.num_frames if num_frames is None else num_frames), spec)

    def request(self, request: Request) -> Request:
        """The request with this system's plan, solver and memory; with its noise, where the request brings
        none; and with its guidance, where the request has a negative condition and no scale."""
        self._check_served()
        negative = request.negative_condition
        if self.branches_of and negative is not None and request.guidance_scale == 1.0:
            branches = self.branches_of(request.condition, negative)
            request = replace(request, condition=None, negative_condition=None, branches=branches)
        scale = request.guidance_scale
        if scale == 1.0 and request.negative_condition is not None:
            scale = self.guidance
        brings = request.noise is not None or request.latents is not None or request.generator is not None
        return replace(
            request,
            plan=self.plan,
            solver=self.solver,
            memory=self.memory,
            noise=request.noise if brings else self.noise,
            guidance_scale=scale,
        )

    def _check_served(self) -> None:
        if self.not_served:
            raise ConfigError(f"{self.name} can be traced, and not served: {self.not_served}")

    def calls(self, num_frames: int) -> list[Call]:
        """What its code does for a video of that many frames, given ones included."""
        plan = self.plan_of(num_frames)
        walk = passes(plan, self.memory, ANY_NETWORK, None, self.stores_last)
        return list(self.calls_of(plan, walk))

    def trace(
        self,
        num_frames: int | None = None,
        *,
        noise: npt.ArrayLike | None = None,
        step_noise: npt.ArrayLike | None = None,
    ) -> Trace:
        """Call by call, without a network: who is fed, and sees what.

        num_frames: given ones included; not needed for a system that was made for a number of frames.
        noise: [F], one number per frame to start from, clean for given frames: the toy network of the golden
            numbers then runs. step_noise: [F, S], for solvers that draw noise: of the update at each level.

        PlanError: an endless system without a number of frames.
        """
        frames = self.num_frames if num_frames is None else num_frames
        if frames is None:
            raise PlanError(f"{self.name} is endless: say how many frames to trace, num_frames=21")
        calls = self.calls(frames)
        timesteps = [(*own.timesteps.tolist(), own.waiting_timestep) for own in self.tracks]
        made = trace_of(calls, frames, timesteps)
        if noise is not None:
            x_in, final = run_toy(calls, self.tracks, noise, step_noise)
            made = replace(made, x_in=x_in, final=final)
        return self.recorded(made)

    def plot(self, path: str | PathLike[str], num_frames: int | None = None) -> None:
        """Draw the trace as a PNG: frames across, calls down."""
        draw(self.trace(num_frames), path, self.title)
