# SPDX-License-Identifier: Apache-2.0
"""Krea Realtime in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory import RecomputedWindow
from ardiff_engine.plan import blocks
from ardiff_engine.systems.krea import SYSTEM
from ardiff_engine.systems.official.krea import recomputed
from ardiff_engine.systems.specs.entry import Entry, renoise
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    size, context, keep_first = entry["block"], entry["context"], entry["keep_first_frame"]
    return replace(
        SYSTEM,
        plan=blocks(size),
        solver=renoise(entry),
        memory=RecomputedWindow(-(-context // size) * size + size),
        calls_of=recomputed(context, keep_first),
        num_frames=entry["blocks"] * size,
    )
