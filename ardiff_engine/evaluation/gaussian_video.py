# SPDX-License-Identifier: Apache-2.0
"""The exact denoiser of Gaussian video, for any noise levels and any view.

Every channel is a stationary AR(2) process over frames, alike and independent for all tokens. Its estimate of
a clean frame is the conditional mean, given the noisy frames that the view shows. Pages hold what it needs:
timestep and position of a frame as keys, its noisy numbers as values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.models import CellBatch, Footprint, ModelSpec, Tables, VideoModel


def ar2_covariance(frames: int, radius: float, period: float) -> torch.Tensor:
    """float64 [frames, frames] of the stationary AR(2) process of variance 1 with poles radius e^(+-2 pi i /
    period)."""
    first, second = 2 * radius * math.cos(2 * math.pi / period), -(radius**2)
    by_distance = [1.0, first / (1 - second)]
    while len(by_distance) < frames:
        by_distance.append(first * by_distance[-1] + second * by_distance[-2])
    distance = (torch.arange(frames)[:, None] - torch.arange(frames)).abs()
    return torch.tensor(by_distance, dtype=torch.float64)[distance]


def conditional_mean(covariance: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The linear map [V, V] from noisy frames signal x + sigma e to the means of the clean frames x."""
    noisy = signal[:, None] * covariance * signal + torch.diag(sigma**2)
    return torch.linalg.solve(noisy, signal[:, None] * covariance).T


class Schedule(Protocol):
    """Of the noise, as `NoiseSchedule` and `FlowSchedule`."""

    def signal(self, t: torch.Tensor) -> torch.Tensor: ...

    def sigma(self, t: torch.Tensor) -> torch.Tensor: ...


class GaussianVideo(VideoModel):
    """processes: (radius, period) of each channel. variance: of every number of a video."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(
        self,
        processes: Sequence[tuple[float, float]],
        schedule: Schedule,
        *,
        tokens: int,
        causal: bool,
        variance: float = 1.0,
    ) -> None:
        channels = len(processes)
        self._covariances = [variance * ar2_covariance(1024, *process) for process in processes]
        self._schedule = schedule
        self._spec = ModelSpec(
            num_frames=16,
            tokens_per_frame=tokens,
            channels=channels,
            layers=1,
            heads=1,
            kv_heads=1,
            head_dim=max(2, channels),
            forgets=causal,
            frames_see_later=not causal,
        )

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def tables(self, timesteps: torch.Tensor) -> Tables:
        return Tables((torch.cat([timesteps.new_zeros(1), timesteps])[:, None, None],))

    def condition(self, given: torch.Tensor | int | None) -> torch.Tensor:
        return torch.empty(0)

    def null_condition(self) -> torch.Tensor:
        return torch.empty(0)

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        return Footprint(0, 4 * (timesteps + 1), tokens * 64)

    def __call__(
        self, x: torch.Tensor, cells: CellBatch, tables: Tables, condition: torch.Tensor | None
    ) -> torch.Tensor:
        tokens, channels = self.spec.tokens(), self.spec.channels
        keys, values = cells.k_pages[0, :, 0], cells.v_pages[0, :, 0]
        page, row = cells.slots // keys.shape[1], cells.slots % keys.shape[1]
        keys[page, row, 0] = tables.parts[0][cells.frame_ids, 0, 0]
        keys[page, row, 1] = cells.positions[:, 0].float()
        values[page, row, :channels] = x

        table, means = cells.table, []
        groups = [g for g in range(table.num_groups) for _ in range(*table.group_ptr[g : g + 2].tolist())]
        for frame, group in enumerate(groups):
            first = int(table.page_ptr[group])
            seen = range(first, first + int(table.seen[frame]))
            listed = [(int(table.pages[e]), slice(0, int(table.valid[e]))) for e in seen]
            own, others = (torch.cat([held[at] for at in listed]).double() for held in (keys, values))
            at, positions = own.unflatten(0, (-1, tokens))[:, 0, :2].unbind(1)
            positions = positions.long()
            noisy = others.unflatten(0, (-1, tokens))[:, :, :channels]
            me = positions == cells.positions[frame * tokens, 0]
            signal, sigma = self._levels(at)
            maps = [
                conditional_mean(c[positions][:, positions], signal, sigma)[me] for c in self._covariances
            ]
            means.append(torch.einsum("cnv,vtc->tc", torch.stack(maps), noisy))
        return torch.cat(means).to(x.dtype)

    def _levels(self, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps of a diffusion are whole numbers, those of a flow are not."""
        at = at.long() if isinstance(self._schedule, NoiseSchedule) else at
        return self._schedule.signal(at), self._schedule.sigma(at)
