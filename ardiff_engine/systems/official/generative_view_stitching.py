# SPDX-License-Identifier: Apache-2.0
"""What the code of Generative View Stitching does in its own way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.solvers import Table, ddim_rows
from ardiff_engine.memory.positions import place
from ardiff_engine.memory.view import Run, View, view_of
from ardiff_engine.plan import Plan
from ardiff_engine.plan.now import frames_of
from ardiff_engine.systems.calls import Call, CallsOf, Cell


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
