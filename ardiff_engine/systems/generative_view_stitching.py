# SPDX-License-Identifier: Apache-2.0
"""Generative View Stitching: all frames at one level, in windows that overlap and keep their centre."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import Table, ddim_rows
from ardiff_engine.memory.positions import place
from ardiff_engine.memory.view import Run, View, view_of
from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import Plan, blocks
from ardiff_engine.plan.now import frames_of
from ardiff_engine.systems.calls import Call, CallsOf, Cell
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry


def solver(total: int, steps: int) -> Table:
    """DDIM over indices; a clean frame is told -1, one that is padding the noisiest."""
    told = [int(i * total / steps) - 1 for i in range(steps, 0, -1)]
    alphas = NoiseSchedule.cosine(total).alphas_cumprod[torch.tensor(told)]
    rows = ddim_rows(torch.cat([alphas, torch.ones(1, dtype=torch.float64)]), "v")
    return Table([*map(float, told), -1.0], rows, waiting=total - 1.0, prediction="v")


def stitched(past: int, centre: int, future: int, given: int, loop: bool) -> CallsOf:
    """Windows of past, centre and future, a centre apart; their centres move. What lies before and after the
    video is noise. given: frames of the video that are clean.

    loop: the centre in the middle has three windows that take turns, tick by tick. Two of them close a loop:
    their past is the start of the video, their future its end.
    """

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        frames, steps = plan.num_frames or 0, plan.num_steps
        video = range(past, frames - future)
        clean = video[:given]
        starts = range(0, len(video), centre)
        for level in range(steps):
            for start in starts:
                centres = range(start + past, start + past + centre)
                window = range(start, min(centres.stop + future, frames))
                seen: View = (Run(window.start, window.stop, shift=-start),)
                if loop and level % 3 and start == starts[len(starts) // 2]:
                    frames_seen = frames_of([*video[:past], *centres, *video[len(video) - future :]])
                    seen = place(view_of(frames_seen), "window")
                yield [
                    Cell(
                        f,
                        0,
                        f in centres and f in video and f not in clean,
                        0,
                        steps if f in clean else level if f in video else steps + 1,
                        seen,
                        written=False,
                    )
                    for run in seen
                    for f in range(run.first, run.stop)
                ]

    return calls_of


def system(
    frames: int, past: int, centre: int, future: int, total: int, steps: int, given: int, loop: bool
) -> System:
    padded = past + frames + future
    return System(
        name="generative-view-stitching",
        title="Generative View Stitching",
        paper="2510.24718",
        repository="andrewsonga/generative_view_stitching",
        plan=blocks(1, lag=0),
        solver=solver(total, steps),
        memory=Windows(((0, padded),), joint=True),
        num_frames=padded,
        calls_of=stitched(past, centre, future, given, loop),
        stores_last=False,
        exact="Calls, also those of windows that close a loop around the middle.",
        left_out="Loops elsewhere, which its code lists by hand; the engine sees one window whole.",
    )


SYSTEM = system(16, 2, 4, 2, 1000, 50, 1, loop=False)


def from_spec(entry: Entry) -> System:
    """config: frames, past, centre, future, steps, training timesteps, given frames."""
    frames, past, centre, future, steps, total, given = map(int, entry["config"])
    return system(frames, past, centre, future, total, steps, given, entry["loop"])
