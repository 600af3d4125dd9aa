# SPDX-License-Identifier: Apache-2.0
"""MAGI-1 in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.diffusion.solvers import RisingEuler
from ardiff_engine.memory import Full, Ranges
from ardiff_engine.plan import staged
from ardiff_engine.systems.magi import SYSTEM
from ardiff_engine.systems.official.magi import recorded, three_branches, times
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


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
