# SPDX-License-Identifier: Apache-2.0
"""All frames together, each on a track of its own (PUSA: a multiplier of the timesteps for each frame)."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.explicit import ExplicitPlan
from ardiff_engine.plan.tick import Tick


@dataclass(frozen=True, slots=True)
class TrackedPlan(ExplicitPlan):
    """tracks: of each frame."""

    tracks: tuple[int, ...] = ()

    def track(self, frame: int) -> int:
        return self.tracks[frame]


@dataclass(frozen=True, slots=True)
class TrackedRule:
    """tracks: of each frame of the video."""

    tracks: tuple[int, ...]

    def plan(self, num_frames: int | None, steps: tuple[int, ...], prefix: int = 0) -> TrackedPlan:
        if num_frames != len(self.tracks) or len(set(steps)) != 1 or max(self.tracks) >= len(steps):
            raise PlanError(
                f"tracks {self.tracks} need as many frames, got {num_frames}, and lists of steps of "
                f"one length, got {steps}"
            )
        frames = tuple(range(prefix, num_frames))
        ticks = tuple(Tick(n, frames, (n,) * len(frames)) for n in range(steps[0]))
        return TrackedPlan(num_frames, steps[0], ticks, prefix, maker=self, tracks=self.tracks)

    def __str__(self) -> str:
        tracks = len(set(self.tracks))
        return "together" if tracks == 1 else f"together on {tracks} tracks"
