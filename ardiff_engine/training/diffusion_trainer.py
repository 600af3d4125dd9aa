# SPDX-License-Identifier: Apache-2.0
"""Stage 2 of any video network: one recipe, its optimizers, validation, the loop, and the folder at the end.

A subclass says what a network of its kind sees: clips and conditions, how it predicts, and its files.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ardiff_engine.data.buckets import alike
from ardiff_engine.files import make_folder, staged, write_atomic
from ardiff_engine.media import contact_sheet
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.averages import Averages
from ardiff_engine.training.config import DiffusionLossConfig, EmaConfig, OptimizerConfig, RunConfig
from ardiff_engine.training.distillation import DistillationConfig
from ardiff_engine.training.ema import Ema
from ardiff_engine.training.log_config import LogConfig
from ardiff_engine.training.loop import BEST_FOLDER, TrainingLoop, exported_at_the_end
from ardiff_engine.training.objective import Clips, Denoising, Schedule
from ardiff_engine.training.optimizer import Optimizer
from ardiff_engine.training.precision import recompute_blocks, weights_dtype
from ardiff_engine.training.processes import rank, together, world_size
from ardiff_engine.training.read_config import to_dict
from ardiff_engine.training.recipe import Cast, find_recipe, run_phase, run_step
from ardiff_engine.training.sharding import exported, gathered, shard
from ardiff_engine.weights import save_model

VALIDATION_SEED = 1
VALIDATION_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of the noisiest level, where all levels are trained."""


class Settings(Protocol):
    """What the configs of all networks have."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def loss(self) -> DiffusionLossConfig: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def ema(self) -> EmaConfig: ...
    @property
    def distillation(self) -> DistillationConfig: ...
    @property
    def log(self) -> LogConfig: ...


class HeldOut(Protocol):
    """A source of clips that keeps some of them apart."""

    def held_out(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Judged:
    """A validation loss. from_clean: every frame is predicted from clean frames before it. by_level: it is
    also told for each noise level."""

    name: str
    from_clean: bool
    by_level: bool


C = TypeVar("C", bound=Settings)
N = TypeVar("N", bound=nn.Module)
S = TypeVar("S", bound=HeldOut)


class DiffusionTrainer(ABC, Generic[C, N, S]):
    """One optimizer step is the mean of the objective over its clips (`training.objective`). Whatever a step
    draws depends on (seed, sample id).

    Args:
        model: the network. trained: it and what is trained with it, or itself. Both are moved to the device.
        schedule: of the noise. judged: validation losses.
    """

    source: S

    def __init__(
        self, config: C, model: N, trained: nn.Module, schedule: Schedule, judged: Sequence[Judged]
    ) -> None:
        run = config.run
        self.config, self.schedule, self.judged = config, schedule, judged
        self.model, self.trained = model, trained.to(run.device, weights_dtype(run))
        if run.recompute:
            recompute_blocks(model)
        self.denoising = self._task(model)
        self.recipe = find_recipe(
            config.loss.objective,
            Cast(model, self._task, self._teacher, self._asked, config.distillation, config.optimizer),
        )
        self.networks = {"model": trained, **self.recipe.networks}
        if run.shard:
            for network in self.networks.values():
                shard(network, run.device)
        settings = {"model": config.optimizer, **self.recipe.optimizers}
        optimizers = {name: Optimizer(self.networks[name], own, run.steps) for name, own in settings.items()}
        self.optimizer = optimizers["model"]
        self.ema = Ema(trained, config.ema.decay) if config.ema.decay else None
        self.loop = TrainingLoop(run, self.networks, optimizers, self.ema, config)

    def train(self, *, resume: bool = False) -> Path:
        """All steps; returns the run's folder, which then can be loaded as a model too, with the averaged
        weights.

        Raises Stopped after SIGINT or SIGTERM; the folder then holds the model as far as it came.
        """
        with exported_at_the_end(lambda: self.export(self.loop.folder)):
            self.loop.run(
                self.step,
                self.validate,
                passes=self.passes,
                sample=self.sample,
                best=self._keep_best if self.config.log.keep_best else None,
                resume=resume,
            )
        return self.loop.folder

    def step(self, step: int) -> Averages:
        """Means over this process's clips: of the loss, and of its parts where it has several."""
        self.trained.train()
        return run_step(
            self.recipe, self.networks, self.loop.optimizers, self.config.run, step, self._training_clips
        )

    def passes(self) -> None:
        """Those of the first step, and their gradients, which are thrown away: to be counted."""
        self.trained.train()
        for number, phase in enumerate(self.recipe.phases):
            run_phase(phase, number, self.recipe, self.networks, self.config.run, 0, self._training_clips)
        for network in self.networks.values():
            network.zero_grad()

    @torch.no_grad()
    def sample(self) -> None:
        """A picture of generated videos, each beside a held-out clip of the same condition."""
        log = self.config.log
        self.trained.eval()
        with gathered([self.trained]):
            together(
                lambda: None if rank() else self._draw(log.samples, log.sample_steps), self.config.run.device
            )

    def _draw(self, count: int, steps: int) -> None:
        shown, made = self._samples(count, steps)
        rows = [clip.numpy() for pair in zip(shown, made, strict=True) for clip in pair]
        labels = [f"{kind} {number}" for number in range(count) for kind in ("held out", "sample")]
        path = make_folder(self.loop.folder / "samples") / f"step-{self.loop.finished:08d}.png"
        contact_sheet(rows, labels, path)

    def _training_clips(self, samples: Sequence[int]) -> Clips:
        return self.clips(self.source, samples, self.config.run.seed, self.config.loss.null_probability)

    @torch.no_grad()
    def validate(self) -> Averages:
        """Losses of held-out clips at fixed noise levels, all frames of a clip at one, and their mean.

        The levels are those of `loss.level_list`: at others a network that never learns them says nothing.
        The same clips and noise every time; neither the rule of training nor the batch size counts.
        """
        run, averages = self.config.run, Averages()
        self.trained.eval()
        source, seed = self.source.held_out(), run.seed + VALIDATION_SEED
        own = range(rank(), run.validation_clips, world_size())
        with gathered([self.trained]):
            for samples in alike(source, own, run.batch):
                clips = self.clips(source, samples, seed, 0.0)
                for name, level in self._validation_levels().items():
                    levels = torch.full(clips.frames.shape[:2], level)
                    clean, t, _ = self.denoising.noised(clips, torch.zeros_like(levels), Purpose.HISTORY)
                    for judged in self.judged:
                        history = (clean, t) if judged.from_clean else None
                        error = float(self.denoising.error(clips, levels, history).sum())
                        averages.add(judged.name, error, len(samples))
                        if judged.by_level:
                            averages.add(f"{judged.name}_at_{name}", error, len(samples))
        averages.gather()
        return averages

    def _validation_levels(self) -> dict[str, int]:
        """By their names in the log."""
        if listed := self.config.loss.level_list:
            return {str(level): level for level in sorted(listed)}
        highest = self.schedule.num_timesteps - 1
        return {str(share): round(share * highest) for share in VALIDATION_LEVELS}

    def export(self, folder: Path) -> None:
        """The networks with averaged weights, what else `_save_more` adds, and training_config.json. All
        processes call it, and the first one writes."""
        if self.ema is not None:
            self.ema.exchange(self.trained)
        try:
            self._write(folder, self._whole())
        finally:
            if self.ema is not None:
                self.ema.exchange(self.trained)

    def _keep_best(self) -> None:
        """As `export`, with the weights as they are; the folder appears whole."""
        parts = self._whole()

        def write() -> None:
            if rank() == 0:
                with staged(self.loop.folder / BEST_FOLDER) as (folder,):
                    self._write(make_folder(folder), parts)

        together(write, self.config.run.device)

    def _whole(self) -> dict[str, nn.Module | None]:
        return {name: exported(part) for name, part in self._exported().items()}

    def _write(self, folder: Path, parts: dict[str, nn.Module | None]) -> None:
        for name, part in parts.items():
            if part is not None:
                save_model(part, folder / name)
        if rank() == 0:
            self._save_more(folder)
            text = json.dumps(to_dict(self.config), indent=2)
            write_atomic(folder / "training_config.json", f"{text}\n".encode())

    @abstractmethod
    def clips(self, source: S, samples: Sequence[int], seed: int, null: float) -> Clips:
        """The clips with these sample ids; a share `null` of them without condition."""

    @abstractmethod
    def _task(self, network: nn.Module, *, whole: bool = False, held_history: bool = False) -> Denoising:
        """See `recipe.TaskOf`."""

    @abstractmethod
    def _teacher(self) -> nn.Module:
        """Of `distillation.teacher`, frozen. ConfigError: one that this student cannot learn from."""

    @abstractmethod
    def _asked(self, clips: Clips) -> list[dict[str, Any]]:
        """See `recipe.Cast`."""

    @abstractmethod
    def _exported(self) -> dict[str, nn.Module]:
        """Trained networks by the names of their folders."""

    @abstractmethod
    def _samples(self, count: int, steps: int) -> tuple[list[Tensor], list[Tensor]]:
        """Held-out clips as the autoencoder shows them, and videos made for their conditions, each uint8
        [F, H, W, 3]."""

    @abstractmethod
    def _save_more(self, folder: Path) -> None: ...
