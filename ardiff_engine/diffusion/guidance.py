# SPDX-License-Identifier: Apache-2.0
"""Guidance: what the solver takes is a linear combination of the network's outputs for several branches.

    out = sum over b of weight_b[level] out_b

Classifier-free guidance (Ho & Salimans 2022) has two: scale · conditional + (1 − scale) · unconditional.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch

from ardiff_engine.arguments import integer
from ardiff_engine.diffusion.real import is_real
from ardiff_engine.diffusion.solvers import Solver
from ardiff_engine.errors import ConfigError

Condition = torch.Tensor | int | Literal["null"] | None
"""Of a branch: as in Request.condition, or the null condition of the network."""

Weight = float | tuple[float, ...] | tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Past:
    """What a branch sees of the past.

    frames: its own block and the last so many frames before it, of those that the memory shows; 0: the block
        is alone. None: all that the memory shows.
    level: finished frames are noised back to that level, with new noise in every tick; 0: all but lost. For
        networks that are fed the whole window in every pass (`ModelSpec.forgets` is False).

    ConfigError: no whole numbers from 0 on.
    """

    frames: int | None = None
    level: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "level"):
            if getattr(self, name) is not None:
                integer(f"Past.{name}", getattr(self, name), low=0)


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One conditioning of a stream, on which the network is run.

    condition: as in Request.condition; "null": the network's null condition.
    weight: a number, or one for each level of a frame: as many as the solver has steps. Where the plan has
        several tracks, one such sequence for each of them.
    view: less than the memory shows.
    writes: whether it stores K/V of finished frames. One that does not reads, instead of its own, those of
        the first branch that does and has no view of its own; it holds pages of frames in flight alone.

    ConfigError: weights that are not finite numbers, or of another number; another kind of view.
    """

    condition: Condition = None
    weight: float | Sequence[float] | Sequence[Sequence[float]] = 1.0
    view: Past | None = None
    writes: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _numbers(self.weight))
        if not (self.view is None or isinstance(self.view, Past)) or not isinstance(self.writes, bool):
            raise ConfigError(
                f"Branch(view={self.view!r:.40}, writes={self.writes!r:.40}): view is a Past(...) or None, "
                "writes True or False"
            )

    def weights(self, steps: Sequence[int]) -> tuple[float, ...]:
        """One for each level, track after track; steps: of each track."""
        weight = cast(Weight, self.weight)
        if isinstance(weight, float):
            return (weight,) * sum(steps)
        tracks = weight if isinstance(weight[0], tuple) else (weight,)
        if tuple(map(len, tracks)) != tuple(steps):
            given = ", ".join(str(len(track)) for track in tracks)
            needed = ", ".join(map(str, steps))
            raise ConfigError(
                f"Branch.weight has {given} numbers and the solver takes {needed} steps: give one number, "
                "or one for each step (of every track)"
            )
        return tuple(value for track in tracks for value in track)


def classifier_free(condition: Condition, negative: Condition, scale: float) -> tuple[Branch, ...]:
    """out_neg + scale (out_cond − out_neg). Scale 1 is no guidance: one branch, half the cost."""
    if scale == 1.0:
        return (Branch(condition),)
    return Branch(condition, scale), Branch("null" if negative is None else negative, 1 - scale)


def weight_table(branches: Sequence[Branch], steps: Sequence[int]) -> np.ndarray:
    """float32 [branches, levels of all tracks]."""
    return np.array([branch.weights(steps) for branch in branches], np.float32)


def noise_weights(solver: Solver, level: int) -> tuple[float, float]:
    """(signal, sigma) of a frame at this level. ConfigError: a solver without schedule or such a level."""
    schedule = getattr(solver, "schedule", None)
    if schedule is None or level >= solver.num_steps:
        raise ConfigError(
            f"Past(level={level}) with {solver!r:.60}: it has no noise schedule, or no such level"
        )
    at = solver.timesteps[level]
    return float(schedule.signal(at)), float(schedule.sigma(at))


def same_condition(branches: Sequence[Branch]) -> list[bool]:
    """Which branches were given the condition that the first one was given."""
    first = branches[0].condition
    tensor = isinstance(first, torch.Tensor)
    return [
        own.condition is first
        if tensor or isinstance(own.condition, torch.Tensor)
        else own.condition == first
        for own in branches
    ]


def _numbers(weight: Any) -> Weight:
    """Nested sequences, arrays and tensors as tuples."""
    if isinstance(weight, torch.Tensor | np.ndarray):
        weight = weight.tolist()
    if is_real(weight) and math.isfinite(weight):
        return float(weight)
    if isinstance(weight, Sequence) and not isinstance(weight, str) and len(weight):
        parts = tuple(_numbers(part) for part in weight)
        depths = {0 if isinstance(part, float) else 1 + isinstance(part[0], tuple) for part in parts}
        if len(depths) == 1 and depths <= {0, 1}:
            return cast(Weight, parts)
    raise ConfigError(
        f"Branch.weight={weight!r:.80}: give a finite number, or a sequence of them, one for each level"
    )
