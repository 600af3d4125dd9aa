# SPDX-License-Identifier: Apache-2.0
"""Where a stream stands: how far its frames are, and which of their K/V are stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ardiff_engine.memory.view import outside
from ardiff_engine.plan.now import Frames


class Progress(NamedTuple):
    """levels: solver steps that each frame which somebody may still see has finished. stored: frames whose
    K/V are. kept: frames whose pages and latents stay."""

    levels: dict[int, int]
    stored: set[int]
    kept: Frames

    def copy(self) -> Progress:
        return Progress(dict(self.levels), set(self.stored), self.kept)

    def fed(
        self, stored: Iterable[int], moved: Iterable[int], stale: Iterable[int], kept: Frames
    ) -> Progress:
        """After a pass that stored frames and moved others, some of which have K/V of before."""
        self.stored.difference_update(stale)
        self.stored.update(stored)
        self.stored.difference_update(moved)
        return self._replace(kept=kept)

    def forget_unseen(self) -> None:
        """Drop frames that are not kept."""
        for frame in outside(self.kept, self.levels):
            del self.levels[frame]
            self.stored.discard(frame)

    def moved_on(self, by: int, fixed: int) -> Progress:
        """The same `by` frames further, but for fixed ones: those before frame `fixed`."""

        def moved(frame: int) -> int:
            return frame if frame < fixed else frame + by

        levels = {moved(frame): level for frame, level in self.levels.items()}
        kept = [range(moved(run.start), moved(run.stop - 1) + 1) for run in self.kept]
        return Progress(levels, set(map(moved, self.stored)), tuple(kept))
