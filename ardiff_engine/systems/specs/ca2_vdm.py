# SPDX-License-Identifier: Apache-2.0
"""Ca2-VDM in the sizes of an entry."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.memory import Placed, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems.ca2_vdm import SYSTEM
from ardiff_engine.systems.official.ca2_vdm import causal, in_a_ring, solver
from ardiff_engine.systems.official.training_draws import Training, prefixes
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    given, block = entry["given_frames"], entry["block"]
    window = Window(entry["cache_frames"] + block)
    ring = entry["position"] == "cyclic"
    return replace(
        SYSTEM,
        plan=blocks(block, first=given),
        solver=solver(entry["steps"]),
        memory=window if ring else Placed(window, "window"),
        num_frames=given + entry["new_frames"],
        given_frames=given,
        calls_of=causal(not entry["partial_causal"]),
        recorded=in_a_ring(entry["position_table"]) if ring else SYSTEM.recorded,
    )


def training(entry: Entry) -> Training:
    """The prefixes of its clips."""
    own = (entry["draws"], entry["min_prefix"], entry["block"], entry["max_frames"], entry["seed"])
    return Training(SYSTEM.name, lambda: prefixes(*own))
