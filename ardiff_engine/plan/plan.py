# SPDX-License-Identifier: Apache-2.0
"""Plan: which frames of a stream move, tick by tick. The base of every rule."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from ardiff_engine.errors import PlanError
from ardiff_engine.plan.checks import verify
from ardiff_engine.plan.picture import draw
from ardiff_engine.plan.walk import Walk

if TYPE_CHECKING:
    from ardiff_engine.diffusion.solvers import Solver


class Plan(Walk):
    """A walk that can be checked and drawn."""

    __slots__ = ()

    def continued(self, prefix: int) -> Plan:
        """The plan that goes on after the first `prefix` frames as if they were given."""
        raise PlanError(f"a plan that is {self.rule} cannot go on from frame {prefix}: submit a new request")

    def extended(self, frames: int) -> Plan:
        """The plan of a video that is that many frames longer."""
        raise PlanError(f"a plan that is {self.rule} cannot be made longer: submit a new request")

    def verify(self, num_ticks: int | None = None) -> None:
        """Check every rule that a plan must keep (`plan.checks`); PlanError names the first break."""
        verify(self, num_ticks)

    def plot(
        self, path: str | PathLike[str], *, solver: Solver | None = None, num_ticks: int | None = None
    ) -> None:
        """Draw the plan as a PNG: frames across, ticks down, colour for the timestep (see `plan.picture`)."""
        draw(self, path, solver=solver, num_ticks=num_ticks)
