# SPDX-License-Identifier: Apache-2.0
"""Plans: which frames of a stream move, tick by tick; and the rules that make them."""

from ardiff_engine.plan.blocks import BlocksPlan
from ardiff_engine.plan.checks import verify
from ardiff_engine.plan.explicit import ExplicitPlan, explicit
from ardiff_engine.plan.lag import LagPlan, autoregressive, lag, synchronous
from ardiff_engine.plan.now import Frames, Now
from ardiff_engine.plan.plan import Plan
from ardiff_engine.plan.rules import (
    Rule,
    blocks,
    parts,
    pyramid,
    rolling,
    sets,
    stage_major,
    staged,
    together,
    trapezoid,
)
from ardiff_engine.plan.tick import Cycle, Tick

__all__ = [
    "BlocksPlan",
    "Cycle",
    "ExplicitPlan",
    "Frames",
    "LagPlan",
    "Now",
    "Plan",
    "Rule",
    "Tick",
    "autoregressive",
    "blocks",
    "explicit",
    "lag",
    "parts",
    "pyramid",
    "rolling",
    "sets",
    "stage_major",
    "staged",
    "synchronous",
    "together",
    "trapezoid",
    "verify",
]
