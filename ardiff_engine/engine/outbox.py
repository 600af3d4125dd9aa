# SPDX-License-Identifier: Apache-2.0
"""Clean frames of one stream on their way to its reader."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class LatentFrame:
    """A frame that has become clean. latent: [tokens, channels]; seconds: since its stream was submitted."""

    index: int
    latent: torch.Tensor
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class CleanFrame:
    """Two copies of a frame that a pass has finished: for the stream, and for its reader."""

    index: int
    own: torch.Tensor
    readers: torch.Tensor


@dataclass(slots=True, eq=False)
class Delivery:
    """The frames that a pass made clean. due: the stream has moved on by that pass, and its reader has not
    got them yet."""

    clean: list[CleanFrame]
    due: bool = False


class Outbox:
    """ready: frames that wait to be read. kept: all clean frames of a finite video, given ones included.

    passes_under_way: passes that have moved the stream and not yet delivered; frames_under_way: the frames
    that these made clean. first_frame_seconds: from the stream's start to its first delivered frame.
    """

    __slots__ = (
        "_started",
        "first_frame_seconds",
        "frames_under_way",
        "kept",
        "passes_under_way",
        "ready",
    )

    def __init__(self, kept: list[torch.Tensor] | None) -> None:
        self.ready: deque[LatentFrame] = deque()
        self.kept = kept
        self.passes_under_way = self.frames_under_way = 0
        self._started = time.perf_counter()
        self.first_frame_seconds: float | None = None

    @property
    def unread(self) -> int:
        """Frames that wait to be read, or will soon."""
        return len(self.ready) + self.frames_under_way

    def deliver(self, delivery: Delivery) -> None:
        """Hand the frames that a pass made clean to the reader."""
        count = len(delivery.clean)
        seconds = time.perf_counter() - self._started if count else 0.0
        ready = [LatentFrame(frame.index, frame.readers, seconds) for frame in delivery.clean]
        kept = [frame.own for frame in delivery.clean]
        if count and self.first_frame_seconds is None:
            self.first_frame_seconds = seconds
        # No call from here on, which an interrupt could come in with: frames would come twice, or never.
        if self.kept is not None:
            self.kept += kept
        self.ready += ready
        self.passes_under_way -= 1
        self.frames_under_way -= count
        delivery.due = False

    def take_all(self) -> list[LatentFrame]:
        # One by one: another thread may be adding frames meanwhile.
        return [self.ready.popleft() for _ in range(len(self.ready))]

    def forget_from(self, frame: int) -> None:
        """`frame` and all later ones are generated again."""
        if self.kept is not None:
            del self.kept[frame:]
        unread = [ready for ready in self.ready if ready.index < frame]
        self.ready.clear()
        self.ready.extend(unread)
