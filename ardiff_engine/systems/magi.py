# SPDX-License-Identifier: Apache-2.0
"""MAGI-1: chunks in a staircase of stages; the noisier a chunk is, the further back it sees. Frames are its
chunks of six latents, and the K/V of a finished one are stored in a pass that moves others."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ardiff_engine.diffusion.guidance import Branch, Condition, Past
from ardiff_engine.diffusion.solvers import RisingEuler
from ardiff_engine.memory import Full, Ranges
from ardiff_engine.plan import staged
from ardiff_engine.systems.calls import by_pass
from ardiff_engine.systems.system import System
from ardiff_engine.systems.trace import Trace
from ardiff_engine.systems.wan_family import Entry

SHORTCUT = (0, 0.5, 0.75)
"""Of a quarter of the steps: where the three steps lie that are taken of it."""


NEARLY_CLEAN = 0.3
"""The time from which a chunk is not guided."""


def times(steps: int, shift: float, shortcut: bool = False) -> tuple[float, ...]:
    """linspace(0, 1)² shifted towards noise; shortcut: 12 steps, nearer to the start of each quarter."""
    places = (
        [(q + s) / 4 for q in range(4) for s in SHORTCUT] if shortcut else [i / steps for i in range(steps)]
    )
    return tuple(u**2 / (shift + (1 - shift) * u**2) for u in (*places, 1.0))


def three_branches(at: tuple[float, ...]) -> Callable[[Condition, Condition], tuple[Branch, ...]]:
    """(1 − p)·alone + (p − x)·past + x·(past and text), with p = 1.5 and x = 7.5 before t = 0.3, then 1 and
    0. Only the branch of the past stores K/V. at: the time of each level, and 1."""
    text = [7.5 if t < NEARLY_CLEAN else 0.0 for t in at[:-1]]
    past = [1.5 if t < NEARLY_CLEAN else 1.0 for t in at[:-1]]

    def branches(condition: Condition, negative: Condition) -> tuple[Branch, ...]:
        return (
            Branch(condition, text, writes=False),
            Branch(negative, [p - x for p, x in zip(past, text, strict=True)]),
            Branch(negative, [1 - p for p in past], view=Past(frames=0), writes=False),
        )

    return branches


def recorded(chunk: int) -> Callable[[Trace], Trace]:
    """Places are those of a chunk's first latent, and on record for chunks that are fed."""

    def of(trace: Trace) -> Trace:
        return replace(trace, position=np.where(trace.fed, trace.position * chunk, np.nan))

    return of


SYSTEM = System(
    name="magi-1",
    title="MAGI-1",
    paper="2505.13211",
    repository="SandAI-org/MAGI-1",
    plan=staged(4),
    solver=RisingEuler(times(64, 3.0), commit=0.9999),
    branches_of=three_branches(times(64, 3.0)),
    memory=Ranges((5, 4, 3, 2), clean=1),
    calls_of=by_pass,
    stores_last=False,
    recorded=recorded(6),
    fps=24,
    exact="Calls and latents; with a prefix, and the shortcut of twelve steps.",
    left_out="A text for each chunk, chunks given in part, the mix of the distilled one without history.",
)


def from_spec(entry: Entry) -> System:
    window, chunk = entry["window"], entry["chunk_frames"]
    at = times(entry["steps"], entry["shift"], entry["shortcut"])
    return replace(
        SYSTEM,
        plan=staged(window),
        solver=RisingEuler(at, commit=0.9999),
        branches_of=three_branches(at),
        memory=Full() if entry["all_history"] else Ranges((5, 4, 3, 2)[:window], clean=1),
        num_frames=entry["chunks"],
        given_frames=entry["given_pixel_frames"] // chunk,
        recorded=recorded(chunk),
    )
