# SPDX-License-Identifier: Apache-2.0
"""How a video is cut into blocks: frames that share one level and see each other."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.sizes import whole


@dataclass(frozen=True, slots=True)
class Cut:
    """Blocks of `size` frames; the first one has `first` frames (default: `size`).

    given_within: given frames may end within a block, whose other frames are made beside them: they are fed
        clean in every pass of it. Otherwise a block is given as a whole.
    """

    size: int = 1
    first: int = 0
    given_within: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", whole("size of a block", self.size))
        object.__setattr__(self, "first", whole("size of the first block", self.first) or self.size)
        if self.size < 1 or self.first < 1:
            raise PlanError(f"blocks of {self.size} frames, the first of {self.first}: use 1 frame or more")

    def number(self, frame: int) -> int:
        """Number of the block that a frame is in."""
        return 0 if frame < self.first else 1 + (frame - self.first) // self.size

    def begin(self, number: int) -> int:
        """First frame of a block."""
        return 0 if number < 1 else self.first + (number - 1) * self.size

    def block(self, number: int) -> range:
        return range(self.begin(number), self.begin(number + 1))

    def check(self, what: str, frames: int) -> None:
        """Raise PlanError, with the two nearest lengths, unless a block ends after that many frames."""
        below = self.begin(self.number(frames))
        if below != frames:
            above = self.begin(self.number(frames) + 1)
            lengths = f"{below} or {above}" if below else f"{above}"
            raise PlanError(
                f"{what}: {frames} frames are not whole blocks of {self.size} "
                f"(the first of {self.first}); the nearest lengths are {lengths}"
            )

    def __str__(self) -> str:
        own = "" if self.first == self.size else f", the first of {self.first}"
        return f"blocks of {self.size}{own}"
