# SPDX-License-Identifier: Apache-2.0
"""What one step of stage 2 consists of: for most objectives one pass and one update of the network, for those
that train several networks (`training.recipes`) one for each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import nn

from ardiff_engine.errors import ConfigError
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.named_function import named_function
from ardiff_engine.training.averages import Averages
from ardiff_engine.training.config import OptimizerConfig, RunConfig
from ardiff_engine.training.distillation import DistillationConfig
from ardiff_engine.training.objective import Clips, Denoising, Losses, Objective, named_losses
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.processes import average_gradients, sample_ids
from ardiff_engine.training.sharding import gathered


@dataclass(frozen=True, slots=True)
class Phase:
    """network: the name of the one that moves. loss: of its clips, what an objective returns."""

    network: str
    loss: Callable[[Clips], Losses]


def _nothing() -> None: ...


@dataclass(frozen=True, slots=True)
class Recipe:
    """phases: of a step, in order; "model" is the student. networks, optimizers: the others, and settings of
    what moves them; both are saved with it. A network without an optimizer moves in `after`, which is called
    when a step is over. from_history: all clips are predicted from frames before, whatever
    `loss.teacher_forcing` says."""

    phases: Sequence[Phase]
    networks: Mapping[str, nn.Module] = field(default_factory=dict)
    optimizers: Mapping[str, OptimizerConfig] = field(default_factory=dict)
    after: Callable[[], None] = _nothing
    from_history: bool = False


class TaskOf(Protocol):
    """whole: the network sees `distillation.teacher_block` frames together. held_history: keys and values of
    the history have no gradient, as those that lie in pages."""

    def __call__(
        self, network: nn.Module, *, whole: bool = False, held_history: bool = False
    ) -> Denoising: ...


@dataclass(frozen=True, slots=True)
class Cast:
    """What a recipe is made of.

    student: the network that is trained. denoising: the task of any network of its kind. teacher: loads
        one, frozen.
    asked: keyword arguments of `Request` for each of the clips: condition, inputs of frames, size.
    """

    student: nn.Module
    denoising: TaskOf
    teacher: Callable[[], nn.Module]
    asked: Callable[[Clips], Sequence[Mapping[str, Any]]]
    settings: DistillationConfig
    optimizer: OptimizerConfig

    @property
    def task(self) -> Denoising:
        """The student's."""
        return self.denoising(self.student)

    @property
    def video(self) -> VideoModel:
        """The student, as engines take it."""
        return cast(VideoModel, self.student)


def find_recipe(name: str, given: Cast) -> Recipe:
    """name: of a module of `training.recipes`, or "module:function" of an objective. ConfigError: neither."""
    if ":" in name:
        objective: Objective = named_function(name, "loss.objective")
        return Recipe([Phase("model", lambda clips: objective(given.task, clips))])
    recipes = importlib.import_module("ardiff_engine.training.recipes")
    known = [module.name for module in pkgutil.iter_modules(recipes.__path__)]
    if name not in known:
        raise ConfigError(
            f'loss.objective: got {name!r:.200}, expected "module:function" or one of {", ".join(known)}.'
        )
    recipe: Recipe = importlib.import_module(f"{recipes.__name__}.{name}").recipe(given)
    return recipe


def run_step(
    recipe: Recipe,
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    run: RunConfig,
    step: int,
    clips: Callable[[Sequence[int]], Clips],
) -> Averages:
    """All phases of a step. Means over this process's clips: of the loss, and of its parts where it has
    several; those of other networks than the student begin with their names."""
    averages = Averages()
    for number, phase in enumerate(recipe.phases):
        prefix = "" if phase.network == "model" else f"{phase.network}_"
        found = run_phase(phase, number, recipe, networks, run, step, clips)
        averages.add_all(found, prefix)
        optimizer = optimizers[phase.network]
        average_gradients(optimizer.parameters.values())
        averages.add(f"{prefix}gradient_norm", optimizer.update(step))
    recipe.after()
    return averages


def run_phase(
    phase: Phase,
    number: int,
    recipe: Recipe,
    networks: Mapping[str, nn.Module],
    run: RunConfig,
    step: int,
    clips: Callable[[Sequence[int]], Clips],
) -> Averages:
    """Losses and gradients of all micro-batches of a phase; nothing moves."""
    averages = Averages()
    with gathered(networks.values()):
        for micro in range(run.accumulate):
            samples = sample_ids(step * len(recipe.phases) + number, micro, run.batch, run.accumulate)
            own = clips(samples)
            losses = named_losses(phase.loss(own), own)
            total = torch.stack([values.sum() for values in losses.values()]).sum()
            (total / (run.batch * run.accumulate)).backward()
            averages.add("loss", float(total.detach()), len(samples))
            for name, values in losses.items():
                if name != "loss":
                    averages.add(name, float(values.detach().sum()), len(values))
    return averages
