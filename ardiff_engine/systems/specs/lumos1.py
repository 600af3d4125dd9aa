# SPDX-License-Identifier: Apache-2.0
"""Lumos-1 in the sizes of an entry."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.systems.lumos1 import SYSTEM
from ardiff_engine.systems.official.lumos1 import PIXELS, masked_steps
from ardiff_engine.systems.official.lumos1_training import trained
from ardiff_engine.systems.official.training_draws import Training
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    rows, columns = entry["height_pixels"] // PIXELS, entry["width_pixels"] // PIXELS
    return replace(
        SYSTEM,
        solver=masked_steps(rows, columns, entry["steps"], entry["mask_history_ratio"]),
        guidance=entry["guidance"],
        num_frames=entry["latent_frames"],
    )


def training(entry: Entry) -> Training:
    """Its masks, of tubes of tokens and others, and its positions. Sizes are in tokens."""
    own = (entry["height"], entry["width"], entry["frames"], entry["seed"])
    return Training(SYSTEM.name, lambda: trained(*own))
