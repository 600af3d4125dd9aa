# SPDX-License-Identifier: Apache-2.0
"""The picture of a trace: frames across, calls down.

Frames that move have the colour of their timestep, dark for noise; orange are those that are fed and stay as
they are, for their K/V or in sight of others; blue those that are seen and not fed. A number says at which
position a frame is seen, where that is not its own.
"""

from __future__ import annotations

from os import PathLike

import numpy as np
from PIL import ImageDraw

from ardiff_engine.errors import PlanError
from ardiff_engine.media.staging import staged
from ardiff_engine.plan.picture import INK, MOVES, Colour, Scale, check_picture, compose, font, ramp
from ardiff_engine.systems.trace import Trace

STORED: Colour = (240, 98, 20)
SEEN: Colour = (190, 212, 242)
UNSEEN: Colour = (242, 242, 245)

ROOM = (20, 11)
"""Pixels of a cell that has room for a number."""


def draw(trace: Trace, path: str | PathLike[str], title: str = "trace") -> None:
    """Write the picture of a trace as a PNG; the file appears whole or not at all.

    PlanError: a trace without calls. MediaError: a name that does not end in .png, a disk that refuses.
    """
    target = check_picture(path)
    calls, frames = trace.fed.shape
    if not calls:
        raise PlanError(f"{title} has no calls to draw: trace a plan that has ticks")
    top = float(max(np.nanmax(trace.timestep), 1.0))
    seen = trace.visible.any(axis=1)
    stored = trace.fed & ~trace.updated
    colours = np.empty((calls, frames, 3), np.uint8)
    colours[:] = UNSEEN
    colours[seen] = SEEN
    colours[stored] = STORED
    share, scale = trace.timestep[trace.updated] / top, Scale("timestep", top, _rises(trace))
    colours[trace.updated] = ramp(1 - share if scale.rises else share)
    entries = [("moves", MOVES), ("fed, stays", STORED), ("seen, not fed", SEEN), ("not seen", UNSEEN)]
    counts = f"{calls} calls, {int(trace.fed.sum())} frames fed, {int(stored.sum())} of them stay as they are"
    page, (left, above, width, height) = compose(colours, (title, counts), "call", scale, entries)
    if width // frames >= ROOM[0] and height // calls >= ROOM[1]:
        pen = ImageDraw.Draw(page)
        elsewhere = seen & (trace.position != np.arange(frames))
        for call, frame in np.argwhere(elsewhere).tolist():
            x, y = left + (frame + 0.5) * width / frames, above + (call + 0.5) * height / calls
            dark = colours[call, frame].astype(int).sum() < 384
            ink = (255, 255, 255) if dark else INK
            pen.text((x, y), f"{trace.position[call, frame]:g}", ink, font(11), anchor="mm")
    with staged(target) as temporary:
        page.save(temporary, format="PNG")


def _rises(trace: Trace) -> bool:
    """Whether frames are told higher timesteps as they become clean."""
    told = [own[moves][:2] for own, moves in zip(trace.timestep.T, trace.updated.T, strict=True)]
    return sum([float(own[1] - own[0]) for own in told if len(own) == 2]) > 0
