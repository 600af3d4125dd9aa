# SPDX-License-Identifier: Apache-2.0
"""MCVD in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.memory.windows import Windows, overlapping
from ardiff_engine.plan import blocks, parts
from ardiff_engine.systems.mcvd import SYSTEM
from ardiff_engine.systems.official.window_calls import given_at
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    """past, new and future frames of a block; blocks: of a prediction, which has no future frames."""
    past, new, future = entry["past"], entry["new"], entry["future"]
    windows = overlapping(past + new * entry["blocks"] + future, past + new + future, past + future)
    return replace(
        SYSTEM,
        plan=parts(blocks(1, lag=0), [stop for _, stop in windows]),
        memory=Windows(windows, joint=True),
        num_frames=windows[-1][1],
        given_frames=past,
        calls_of=given_at(range(past + new, past + new + future)),
    )
