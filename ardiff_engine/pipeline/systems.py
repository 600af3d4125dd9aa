# SPDX-License-Identifier: Apache-2.0
"""Systems as a text-to-video pipeline runs them: with a folder's scheduler, other steps, given frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches

from ardiff_engine import systems
from ardiff_engine.arguments import integer, number
from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import DPMSolver, Euler, Solver, UniPC
from ardiff_engine.engine.schedules import tracks_of
from ardiff_engine.errors import ArdiffError, ConfigError
from ardiff_engine.memory import Full
from ardiff_engine.memory.windows import Windows
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.models.wan import WanExperts
from ardiff_engine.parsing import shown
from ardiff_engine.pipeline.pixels import checked_latents, latents_of
from ardiff_engine.plan.cut import Cut
from ardiff_engine.systems import System

FREE = (UniPC, DPMSolver, Euler)
"""Solvers of models that were not distilled to steps of their own."""


def system_named(system: object) -> System:
    """ConfigError for an unknown one."""
    if isinstance(system, System):
        return system
    if not isinstance(system, str):
        raise ConfigError(f"system: got {shown(system)}, expected one of {', '.join(systems.names())}.")
    return systems.get(system)


def fitting(model: VideoModel) -> list[str]:
    """Names of the systems that can run a network."""
    return [name for name in systems.names() if _why_not(systems.get(name), model) is None]


def check_fits(system: System, model: VideoModel) -> None:
    """ConfigError where the network cannot run the system, with a few that it can, of the nearest names."""
    why = _why_not(system, model)
    if why is not None:
        near = get_close_matches(system.name, fitting(model), n=5, cutoff=0.0)
        raise ConfigError(f"{system.name} cannot run this model: {why} Others can: {', '.join(near)}, …")


def continuing(system: System, given: int, latents: int | None, *, first_clean: bool) -> System:
    """The system for a video of `latents` that goes on after `given` ones: a block begins behind them.

    first_clean: the model was trained on clips whose first frame is clean among noisy ones (Wan 2.2's TI2V).
    Then a system that makes all frames together takes one, feeds it in every pass, and never moves it.

    ConfigError: another one whose frames are all made together."""
    if not given:
        return system
    if isinstance(system.memory, Full) and system.memory.joint:
        if given > 1 or not first_clean or latents is None:
            one = "this model takes one picture" if first_clean else "given ones need a causal model"
            raise ConfigError(f"{system.name} makes all frames together; {one}.")
        return replace(system, memory=Windows(((0, latents),), joint=True), given_frames=given)
    cut = getattr(system.plan, "cut", None)
    plan = system.plan
    if cut is not None and not cut.given_within:
        plan = replace(plan, cut=Cut(cut.size, given % cut.size))  # type: ignore[type-var]
    return replace(system, plan=plan, given_frames=given)


def asked_latents(
    num_frames: int | None, system: System, spec: ModelSpec, given: int, *, first_clean: bool
) -> tuple[int | None, System]:
    """Latents of a video of so many pictures, `given` ones included, and the system that makes it; see
    `continuing`. ConfigError, PlanError: what the system cannot make."""
    if num_frames is None:
        system = continuing(system, given, None, first_clean=first_clean)
        system.plan_of(None)  # refuses systems that make whole videos
        return None, system
    latents = latents_of(integer("num_frames", num_frames, low=1))
    system = continuing(system, given, latents, first_clean=first_clean)
    return checked_latents(num_frames, system, spec), system


def with_steps(system: System, steps: int | None) -> System:
    """ConfigError where a model was distilled to a list of its own."""
    if steps is None:
        return system
    if not isinstance(system.solver, FREE):
        counts = "/".join(str(own.num_steps) for own in tracks_of(system.solver))
        raise ConfigError(
            f"num_inference_steps: got {steps!r}; {system.name} was distilled to the {counts} steps of its "
            "list. Leave it out."
        )
    return replace(system, solver=replace(system.solver, num_inference_steps=steps))


def with_scheduler(system: System, settings: Mapping[str, object]) -> System:
    """The system with the solver of a folder's scheduler_config.json, where it takes one, as diffusers do.
    ConfigError: a scheduler of diffusers that is not known here."""
    if not settings or not system.takes_scheduler:
        return system
    kind = settings.get("_class_name")

    def value(name: str, usual: float) -> float:
        return number(f"{name} of the scheduler", settings.get(name) or usual)

    shift, order = value("flow_shift", 1.0), int(value("solver_order", 2))
    solver: Solver
    if kind == "UniPCMultistepScheduler":
        bh = 1 if settings.get("solver_type") == "bh1" else 2
        own = system.solver if isinstance(system.solver, UniPC) else UniPC(FlowSchedule(shift))
        solver = replace(own, schedule=FlowSchedule(shift), order=order, bh=bh, grid="above_zero")
    elif kind == "DPMSolverMultistepScheduler":
        solver = DPMSolver(FlowSchedule(shift), 50, order=order, grid="below_one")
    elif kind == "FlowMatchEulerDiscreteScheduler":
        solver = Euler(FlowSchedule(value("shift", 1.0)), 50, grid="shifted_twice")
    else:
        raise ConfigError(
            f"the folder's scheduler is a {shown(kind)}, expected UniPCMultistepScheduler, "
            "DPMSolverMultistepScheduler or FlowMatchEulerDiscreteScheduler."
        )
    return replace(system, solver=solver)


def _why_not(system: System, model: VideoModel) -> str | None:
    joint = isinstance(system.memory, Full) and system.memory.joint
    if isinstance(model, WanExperts) and not joint:
        return "it has two transformers, for high and low noise, and the system stores K/V of one."
    try:
        system.check(model.spec)
    except ArdiffError as error:
        return str(error)
    return None
