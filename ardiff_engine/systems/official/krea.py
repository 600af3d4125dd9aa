# SPDX-License-Identifier: Apache-2.0
"""What the code of Krea Realtime does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ardiff_engine.memory.positions import place
from ardiff_engine.memory.view import View, view_of
from ardiff_engine.plan import Plan
from ardiff_engine.plan.now import frames_of
from ardiff_engine.systems.calls import Call, CallsOf


def recomputed(context: int, keep_first: bool) -> CallsOf:
    """Krea Realtime: before each block a call feeds the last `context` frames, also where nothing has
    changed; keep_first: the first frame and the last ones. Blocks of them see themselves and those before."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in walk:
            moved = [cell for cell in cells if cell.updates]
            own = plan.block(moved[0].frame)
            recent = range(max(0, own.start - context + keep_first), own.start)
            frames = [*range(min(recent.start, keep_first)), *recent]
            if moved[0].level == 0 and frames:
                ends = [min(len(frames), (i // len(own) + 1) * len(own)) for i in range(len(frames))]
                clean = moved[0]._replace(updates=False, level=plan.num_steps)
                seen = [_in_a_row(frames[:end]) for end in ends]
                yield [clean._replace(frame=f, view=view) for f, view in zip(frames, seen, strict=True)]
            view = _in_a_row([*frames, *own])
            yield [cell._replace(view=view) for cell in moved]

    return calls_of


def _in_a_row(frames: Iterable[int]) -> View:
    return place(view_of(frames_of(frames)), "window")
