# SPDX-License-Identifier: Apache-2.0
"""FVDM in the sizes of an entry."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.memory.windows import Windows, overlapping
from ardiff_engine.plan import blocks, parts
from ardiff_engine.systems.fvdm import SYSTEM
from ardiff_engine.systems.official.fvdm import solver
from ardiff_engine.systems.official.training_draws import Training, shared_or_not
from ardiff_engine.systems.official.window_calls import given_at
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    size, overlap = entry["window"], entry["condition_frames"]
    frames = size + (entry["chunks"] - 1) * (size - overlap)
    windows = overlapping(frames, size, overlap)
    return replace(
        SYSTEM,
        plan=parts(blocks(1, lag=0), [stop for _, stop in windows]),
        solver=solver(entry["steps"]),
        memory=Windows(windows, joint=True),
        num_frames=frames,
        calls_of=given_at(entry["given_places"]),
    )


def training(entry: Entry) -> Training:
    """Its probabilistic timesteps (PTSS)."""
    own = (entry["draws"], entry["batch"], entry["frames"], entry["probability"], entry["seed"])
    return Training(SYSTEM.name, lambda: shared_or_not(*own))
