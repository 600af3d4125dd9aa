# SPDX-License-Identifier: Apache-2.0
"""Plans: which cells of a stream are fed, tick by tick."""

from ardiff_engine.plan.checks import verify
from ardiff_engine.plan.explicit import ExplicitPlan, explicit
from ardiff_engine.plan.lag import LagPlan, autoregressive, lag, synchronous
from ardiff_engine.plan.plan import Plan
from ardiff_engine.plan.tick import Kind, Tick

__all__ = [
    "ExplicitPlan",
    "Kind",
    "LagPlan",
    "Plan",
    "Tick",
    "autoregressive",
    "explicit",
    "lag",
    "synchronous",
    "verify",
]
