# SPDX-License-Identifier: Apache-2.0
"""What a loss of stage 2 is written with: `[loss] objective = "module:function"`.

An objective gets a `Denoising` and `Clips` and returns the loss of every clip, float [B], or several under
names: {"teacher_loss": [n], "diffusion_loss": [B - n]}. What is minimised is the sum of all numbers over B,
so that it does not matter how a step is split into micro-batches and processes. Diffusion forcing is

    def objective(denoising, clips):
        return denoising.error(clips, denoising.levels(clips))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ardiff_engine.data.choice import uniform
from ardiff_engine.diffusion.flow_schedule import FlowSchedule
from ardiff_engine.diffusion.noise import noise_keys
from ardiff_engine.diffusion.prediction import x0_weights
from ardiff_engine.errors import ConfigError
from ardiff_engine.ops import add_noise
from ardiff_engine.purposes import Purpose
from ardiff_engine.training.config import DiffusionLossConfig
from ardiff_engine.training.timesteps import history_levels, independent_levels, training_levels


class Schedule(Protocol):
    """Of the noise: `NoiseSchedule` and `FlowSchedule`."""

    @property
    def num_timesteps(self) -> int: ...

    def signal(self, t: Tensor) -> Tensor: ...

    def sigma(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    """samples: their B ids, rising. frames: clean latents [B, F, ...]. condition: [B, ...], or whatever else
    rows can be chosen of. null: the same without conditions, for guidance. All randomness is a function of
    (seed, sample id)."""

    samples: Sequence[int]
    frames: Tensor
    condition: Any
    seed: int
    null: Any = None

    def chosen(self, rows: Sequence[int]) -> Clips:
        """The clips of these rows."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.frames.device)
        return replace(
            self,
            samples=[self.samples[row] for row in rows],
            frames=self.frames[index],
            condition=self.condition[index],
            null=None if self.null is None else self.null[index],
        )

    def first(self, frames: int) -> Clips:
        """The first frames of all clips. Conditions that say something of each frame cut themselves."""
        cut = [
            given.first(frames) if hasattr(given, "first") else given for given in (self.condition, self.null)
        ]
        return replace(self, frames=self.frames[:, :frames], condition=cut[0], null=cut[1])

    def uniform(self, purpose: int, count: int) -> Tensor:
        """float64 [B, count] in [0, 1). Purposes from 128 on are free for objectives of users."""
        drawn = [uniform(self.seed, purpose, sample, count) for sample in self.samples]
        return torch.tensor([values.tolist() for values in drawn], dtype=torch.float64)


class Predict(Protocol):
    """A network on whole clips, differentiable: noisy frames [B, F, ...] at timesteps [B, F] -> like them.

    With history [B, F, ...] and its timesteps [B, F] frame f sees history frames before f in place of its own
    clip's.
    """

    def __call__(
        self, noisy: Tensor, t: Tensor, condition: Any, history: Tensor | None, history_t: Tensor | None, /
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Denoising:
    """The network that is trained, its noise schedule, and the [loss] table. Levels are whole numbers, 0
    (cleanest) .. num_timesteps - 1, one per frame: int64 [B, F]."""

    predict: Predict
    schedule: Schedule
    settings: DiffusionLossConfig

    def levels(self, clips: Clips) -> Tensor:
        """By the rule `loss.timesteps`, with known first frames in a share of the clips."""
        return training_levels(*self._sizes(clips), self.settings, clips.seed)

    def independent_levels(self, clips: Clips) -> Tensor:
        """One for every frame (or block of frames), whatever the rule."""
        return independent_levels(*self._sizes(clips), self.settings, clips.seed)

    def noised(
        self, clips: Clips, levels: Tensor, purpose: int = Purpose.TRAIN
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(noisy frames, their timesteps [B, F], what the network is to say of them)."""
        x0 = clips.frames
        count, frames = x0.shape[:2]
        streams = [sample % 2**32 for sample in clips.samples for _ in range(frames)]
        steps = [sample // 2**32 for sample in clips.samples for _ in range(frames)]
        keys = noise_keys(clips.seed, streams, list(range(frames)) * count, purpose, steps).to(x0.device)
        t = self.timesteps(levels)
        noised = add_noise(
            x0.flatten(0, 1),
            self.schedule.signal(t.reshape(-1)).to(x0.device, x0.dtype),
            self.schedule.sigma(t.reshape(-1)).to(x0.device, x0.dtype),
            keys=keys,
            target=self.settings.prediction,
        )
        target = x0 if noised.target is None else noised.target.reshape(x0.shape)
        return noised.noisy.reshape(x0.shape), t.to(x0.device), target

    def history(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """(frames for teacher forcing, their timesteps): as noisy as `loss.history_levels` says, and at the
        noisiest level where `loss.history_dropped` drops one. Level 0: as a sampler leaves and tells them."""
        levels = history_levels(*self._sizes(clips), self.settings, clips.seed)
        noisy, t, _ = self.noised(clips, levels, Purpose.HISTORY)
        clean = (levels == 0).to(t.device)
        if isinstance(self.schedule, FlowSchedule):
            noisy = torch.where(clean.reshape(*clean.shape, *[1] * (noisy.ndim - 2)), clips.frames, noisy)
        return noisy, torch.where(clean, self.told_clean(t), t)

    def told_clean(self, t: Tensor) -> Tensor:
        """What samplers tell the network of finished frames, like t: 0 of a flow (`told_timesteps`), else 1
        (`fed_timesteps`: such frames keep the noise of level 0)."""
        return torch.full_like(t, 0 if isinstance(self.schedule, FlowSchedule) else 1)

    def error(self, clips: Clips, levels: Tensor, history: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """float [B]: mean of (target - network)² over each clip."""
        noisy, t, target = self.noised(clips, levels)
        output = self.predict(noisy, t, clips.condition, *(history or (None, None)))
        return (output - target).square().flatten(1).mean(1)

    def x0(
        self, noisy: Tensor, t: Tensor, condition: Any, history: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """What the network takes the clean frames for, like noisy."""
        return self.clean(noisy, t, self.predict(noisy, t, condition, *(history or (None, None))))

    def clean(self, noisy: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """The estimate of the clean frames that an output of the network is."""
        return self._weighted(*x0_weights(*self._rates(t), self.settings.prediction), noisy, output)

    def moved(self, noisy: Tensor, x0: Tensor, t: Tensor, after: Tensor) -> Tensor:
        """DDIM's step from timesteps t to `after` [B, F], α'·x̂0 + σ'·(x − α·x̂0)/σ; for a flow, Euler's."""
        (signal, sigma), (next_signal, next_sigma) = self._rates(t), self._rates(after)
        return self._weighted(next_sigma / sigma, next_signal - next_sigma * signal / sigma, noisy, x0)

    def timesteps(self, levels: Tensor) -> Tensor:
        """What the network is told. A flow's levels are those of its table, the cleanest first."""
        if isinstance(self.schedule, FlowSchedule):
            return self.schedule.timesteps.flip(0)[levels]
        return levels

    def _rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.schedule.signal(t), self.schedule.sigma(t)

    @staticmethod
    def _weighted(first: Tensor, second: Tensor, x: Tensor, y: Tensor) -> Tensor:
        shape = (*first.shape, *(1,) * (x.ndim - first.ndim))
        first, second = (weight.to(x.device, x.dtype).reshape(shape) for weight in (first, second))
        return first * x + second * y

    def _sizes(self, clips: Clips) -> tuple[Sequence[int], int, int]:
        return clips.samples, clips.frames.shape[1], self.schedule.num_timesteps


Losses = Tensor | Mapping[str, Tensor]
Objective = Callable[[Denoising, Clips], Losses]


def named_losses(losses: Losses, clips: Clips) -> dict[str, Tensor]:
    """Checked, and under names. ConfigError for anything but losses of clips."""
    named = dict(losses) if isinstance(losses, Mapping) else {"loss": losses}
    for name, values in named.items():
        if not isinstance(values, Tensor) or values.ndim != 1 or len(values) > len(clips.samples):
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ConfigError(
                f"loss.objective: {name!r} is {got}, expected one loss for each clip, "
                f"[{len(clips.samples)}] or fewer."
            )
    if not named:
        raise ConfigError("loss.objective: it returned no loss.")
    return named
