# SPDX-License-Identifier: Apache-2.0
"""Epona in the sizes of an entry."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.diffusion.solvers import RisingEuler
from ardiff_engine.memory import RecomputedWindow
from ardiff_engine.systems.epona import SYSTEM
from ardiff_engine.systems.official.epona import encoded, times
from ardiff_engine.systems.official.training_draws import Training, chained
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


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
