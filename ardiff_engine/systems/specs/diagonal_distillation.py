# SPDX-License-Identifier: Apache-2.0
"""Diagonal Distillation in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.plan import blocks
from ardiff_engine.systems.diagonal_distillation import SYSTEM
from ardiff_engine.systems.specs.entry import Entry, frames
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    return replace(SYSTEM, plan=blocks(entry["block"]), num_frames=frames(entry))
