# SPDX-License-Identifier: Apache-2.0
"""Epona: the last frames are encoded once for each new one, which another network then denoises alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from math import exp

import numpy as np

from ardiff_engine.diffusion.solvers import RisingEuler
from ardiff_engine.memory import RecomputedWindow
from ardiff_engine.memory.view import Run
from ardiff_engine.plan import Plan, blocks
from ardiff_engine.systems.calls import Call, CallsOf
from ardiff_engine.systems.system import System
from ardiff_engine.systems.trace import Trace
from ardiff_engine.systems.training_draws import Training, chained
from ardiff_engine.systems.wan_family import Entry


def times(steps: int, tokens: int) -> tuple[float, ...]:
    """Equal steps, moved towards noise the more, the more tokens a frame has (as Flux does it)."""
    more = exp(0.5 + 0.65 * (tokens - 256) / (4096 - 256))
    left = [1 - i / steps for i in range(1, steps)]
    return (0.0, *[1 - more / (more + 1 / u - 1) for u in left], 1.0)


def encoded(window: int) -> CallsOf:
    """A call for the last `window` frames, each of which sees those before it, then the steps of a frame."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        moves = [cell for cells in walk for cell in cells if cell.updates]
        for frame, steps in groupby(moves, lambda cell: cell.frame):
            first, *others = steps
            start = max(0, frame - window)
            clean = first._replace(updates=False, level=plan.num_steps, written=False)
            yield [
                clean._replace(frame=f, view=(Run(start, f + 1, shift=-start),)) for f in range(start, frame)
            ]
            for cell in (first, *others):
                yield [cell._replace(view=(Run(frame, frame + 1),), written=False)]

    return calls_of


def without_places(trace: Trace) -> Trace:
    """The network that denoises has no places."""
    moves = np.broadcast_to(trace.updated.any(axis=1, keepdims=True), trace.position.shape)
    return replace(trace, position=np.where(moves, np.nan, trace.position))


SYSTEM = System(
    name="epona",
    title="Epona",
    paper="2506.24113",
    repository="Kevin-thu/Epona",
    plan=blocks(1),
    solver=RisingEuler(times(100, 512)),
    memory=RecomputedWindow(11),
    fps=5,
    num_frames=20,
    given_frames=10,
    calls_of=encoded(10),
    stores_last=False,
    recorded=without_places,
    exact="Calls, schedules and latents of free running.",
    left_out="Its two networks: the engine runs one, over the window and the new frame together. Poses.",
)


def from_spec(entry: Entry) -> System:
    window = entry["condition_frames"]
    return replace(
        SYSTEM,
        solver=RisingEuler(times(entry["steps"], entry["image_tokens"])),
        memory=RecomputedWindow(window + 1),
        num_frames=window + entry["new_frames"],
        given_frames=window,
        calls_of=encoded(window),
    )


def training(entry: Entry) -> Training:
    """Its chains of forwards."""
    own = (entry["condition_frames"], entry["chain"], entry["every"])
    return Training(SYSTEM.name, lambda: chained(*own))
