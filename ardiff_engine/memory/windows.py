# SPDX-License-Identifier: Apache-2.0
"""Listed windows, of which every pass is fed all frames: a video made window by window, with overlaps
(long videos of SkyReels-V2 and FVDM, roll-outs of Diffusion Forcing)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.policy import StoresClean
from ardiff_engine.memory.view import Fed, View, view_of, within
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class Windows(StoresClean):
    """windows: as (first, stop), both rising. A pass is fed the first one that holds its oldest unfinished
    frame, waiting frames too, at places that count from its start. joint: later frames are seen as well,
    as in networks that are trained on whole clips."""

    windows: tuple[tuple[int, int], ...]
    joint: bool = False
    chunk = 0

    def __post_init__(self) -> None:
        rising = all(
            a[0] <= b[0] and a[1] < b[1] for a, b in zip(self.windows, self.windows[1:], strict=False)
        )
        if not self.windows or not rising or any(first >= stop for first, stop in self.windows):
            raise ConfigError(f"memory.Windows {self.windows}: give (first, stop) of each, rising")

    def network(self, spec: ModelSpec) -> ModelSpec:
        return replace(spec, forgets=False, frames_see_later=self.joint or spec.frames_see_later)

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        if plan.num_frames is None or plan.num_frames > self.windows[-1][1]:
            raise ConfigError(f"memory.Windows ends after {self.windows[-1][1]} frames: list more windows")

    def most_frames(self, plan: Plan) -> int:
        most = max(stop - first for first, stop in self.windows)
        return most if plan.num_frames is None else min(most, plan.num_frames)

    def view(self, fed: Fed, now: Now) -> View:
        first, _ = self.of(fed.block.start)
        return view_of(within(now.started, first, fed.block.stop), shift=-first)

    def kept(self, oldest: range, now: Now) -> Frames:
        first, _ = self.of(oldest.start)
        return within(now.started, first, now.newest + 1)

    def of(self, frame: int) -> tuple[int, int]:
        """The first window that ends after a frame."""
        return next((own for own in self.windows if frame < own[1]), self.windows[-1])


def overlapping(frames: int, size: int, overlap: int) -> tuple[tuple[int, int], ...]:
    """Windows of `size` frames, each beginning with the last `overlap` of the one before; the last may be
    shorter."""
    windows = [(0, min(size, frames))]
    while windows[-1][1] < frames:
        first = windows[-1][1] - overlap
        windows.append((first, min(first + size, frames)))
    return tuple(windows)


def trailing(ends: list[int], size: int) -> tuple[tuple[int, int], ...]:
    """The last `size` frames before each end, or all there are."""
    return tuple([(max(0, end - size), end) for end in ends])
