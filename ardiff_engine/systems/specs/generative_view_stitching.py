# SPDX-License-Identifier: Apache-2.0
"""Generative View Stitching in the sizes of an entry."""

from __future__ import annotations

from ardiff_engine.systems.generative_view_stitching import system
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    """config: frames, past, centre, future, steps, training timesteps, given frames."""
    frames, past, centre, future, steps, total, given = map(int, entry["config"])
    return system(frames, past, centre, future, total, steps, given, entry["loop"])
