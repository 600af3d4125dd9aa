# SPDX-License-Identifier: Apache-2.0
"""Krea Realtime: a few frames of context are computed again before every block, at places counted from their
start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import RecomputedWindow
from ardiff_engine.memory.positions import place
from ardiff_engine.memory.view import View, view_of
from ardiff_engine.plan import Plan, blocks
from ardiff_engine.plan.now import frames_of
from ardiff_engine.systems.calls import Call, CallsOf
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE, Entry, renoise


def recomputing(context: int, keep_first: bool) -> CallsOf:
    """Before each block a call feeds the last `context` frames, also where nothing has changed; keep_first:
    the first frame and the last ones. Blocks of them see themselves and those before."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in walk:
            moved = [cell for cell in cells if cell.updates]
            own = plan.block(moved[0].frame)
            recent = range(max(0, own.start - context + keep_first), own.start)
            frames = [*range(min(recent.start, keep_first)), *recent]
            if moved[0].level == 0 and frames:
                ends = [min(len(frames), (i // len(own) + 1) * len(own)) for i in range(len(frames))]
                clean = moved[0]._replace(updates=False, level=plan.num_steps)
                yield [
                    clean._replace(frame=frame, view=_in_a_row(frames[:end]))
                    for frame, end in zip(frames, ends, strict=True)
                ]
            view = _in_a_row([*frames, *own])
            yield [cell._replace(view=view) for cell in moved]

    return calls_of


def _in_a_row(frames: Iterable[int]) -> View:
    return place(view_of(frames_of(frames)), "window")


SYSTEM = System(
    name="krea-realtime",
    title="Krea Realtime",
    paper="",
    repository="krea-ai/realtime-video",
    plan=blocks(3),
    solver=Renoise(SCHEDULE, [1000, 937, 833, 625]),
    memory=RecomputedWindow(6),
    calls_of=recomputing(3, False),
    stores_last=False,
    exact="Calls and latents.",
    left_out="Frames encoded anew from pictures; a first frame that stays is traced, not served.",
)


def from_spec(entry: Entry) -> System:
    size, context, keep_first = entry["block"], entry["context"], entry["keep_first_frame"]
    return replace(
        SYSTEM,
        plan=blocks(size),
        solver=renoise(entry),
        memory=RecomputedWindow(-(-context // size) * size + size),
        calls_of=recomputing(context, keep_first),
        num_frames=entry["blocks"] * size,
    )
