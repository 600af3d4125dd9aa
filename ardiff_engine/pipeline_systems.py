# SPDX-License-Identifier: Apache-2.0
"""The systems of a text-to-video pipeline: plan, memory, steps, guidance, and what a new prompt does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ardiff_engine.arguments import number
from ardiff_engine.diffusion import FlowSchedule
from ardiff_engine.diffusion.solvers import DPMSolver, Euler, Renoise, UniPC
from ardiff_engine.engine.stream_edits import Effect
from ardiff_engine.errors import ConfigError, PlanError
from ardiff_engine.memory import Full, MemoryPolicy, Window
from ardiff_engine.parsing import shown
from ardiff_engine.plan import Plan, Rule, blocks
from ardiff_engine.plan.blocks import BlocksRule
from ardiff_engine.plan.cut import Cut

VideoSolver = Renoise | UniPC | Euler | DPMSolver


@dataclass(frozen=True, slots=True)
class WholeVideo:
    """All frames in one block."""

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> Plan:
        if num_frames is None or prefix:
            what = "an endless video" if num_frames is None else "a video that continues given frames"
            raise PlanError(f"{what} needs a causal model: this one makes all frames together.")
        return BlocksRule(Cut(num_frames)).plan(num_frames, steps)


@dataclass(frozen=True, slots=True)
class VideoSystem:
    """on_prompt: what a new prompt does to the frames before, see `Stream.set_condition`.
    fps: frames per second that the models were trained on."""

    name: str
    plan: Rule
    memory: MemoryPolicy
    solver: VideoSolver
    guidance_scale: float = 1.0
    on_prompt: Effect = "keep"
    fps: float = 16.0

    @property
    def causal(self) -> bool:
        return not isinstance(self.plan, WholeVideo)

    def with_steps(self, steps: int | None) -> VideoSolver:
        """ConfigError where a model was distilled to a list of its own."""
        if steps is None:
            return self.solver
        if isinstance(self.solver, Renoise):
            raise ConfigError(
                f"num_inference_steps: got {steps!r}; {self.name} was distilled to the "
                f"{self.solver.num_steps} steps of its list. Leave it out."
            )
        return replace(self.solver, num_inference_steps=steps)

    def rule(self, given: int) -> Rule:
        """The plan of a video after `given` latents: a block begins behind them."""
        cut = getattr(self.plan, "cut", None)
        if not given or cut is None:
            return self.plan
        return replace(self.plan, cut=Cut(cut.size, given % cut.size))  # type: ignore[type-var]


_SHIFT_5 = FlowSchedule(5.0)
_FOUR_STEPS = Renoise(_SHIFT_5, _SHIFT_5.warp([1000, 750, 500, 250]))
_SELF_FORCING = VideoSystem("self-forcing", blocks(3), Window(21), _FOUR_STEPS)

SYSTEMS = {
    system.name: system
    for system in (
        VideoSystem("wan", WholeVideo(), Full(), UniPC(_SHIFT_5, 50), guidance_scale=5.0),
        _SELF_FORCING,
        replace(_SELF_FORCING, name="self-forcing-framewise", plan=blocks(1)),
        VideoSystem("causvid", blocks(3), Full(), Renoise(FlowSchedule(8.0), [1000, 757, 522])),
        replace(_SELF_FORCING, name="longlive", memory=Window(9, sink=3), on_prompt="recommit"),
        replace(_SELF_FORCING, name="causal-forcing"),
    )
}


def system_named(name: object) -> VideoSystem:
    if isinstance(name, VideoSystem):
        return name
    if not isinstance(name, str) or name not in SYSTEMS:
        raise ConfigError(f"system: got {name!r}, expected one of {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]


def with_scheduler(system: VideoSystem, settings: Mapping[str, object]) -> VideoSystem:
    """The system with the solver of a folder's scheduler_config.json, where it was not distilled to steps of
    its own. ConfigError: a scheduler of diffusers that is not known here."""
    if not settings or isinstance(system.solver, Renoise):
        return system
    kind = settings.get("_class_name")

    def value(name: str, usual: float) -> float:
        return number(f"{name} of the scheduler", settings.get(name) or usual)

    shift, order = value("flow_shift", 1.0), int(value("solver_order", 2))
    solver: VideoSolver
    if kind == "UniPCMultistepScheduler":
        bh = 1 if settings.get("solver_type") == "bh1" else 2
        solver = UniPC(FlowSchedule(shift), 50, order=order, bh=bh, grid="above_zero")
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
