# SPDX-License-Identifier: Apache-2.0
"""FAR: a frame after the other; clean frames have their own timestep, and are stored in the next pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from ardiff_engine.diffusion.solvers import Table
from ardiff_engine.diffusion.solvers.solver import coefficient_table
from ardiff_engine.errors import ConfigError
from ardiff_engine.memory import Full
from ardiff_engine.plan import Plan, blocks
from ardiff_engine.systems.calls import Call, by_pass
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry


def solver(steps: int) -> Table:
    """Euler from 1000 down to 1, equally far apart, and to 0; clean frames are told -1."""
    told = torch.linspace(1000, 1, steps, dtype=torch.float64)
    sigmas = torch.cat([told / 1000, torch.zeros(1, dtype=torch.float64)])
    falls = sigmas[1:] - sigmas[:-1]
    rows = coefficient_table((torch.ones_like(falls), falls), torch.zeros_like(falls), torch.ones_like(falls))
    return Table([*told.tolist(), -1.0], rows, waiting=1000.0, prediction="flow")


def with_the_next(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """Given frames are stored in the call that moves the first new one."""
    held: Call = []
    for cells in by_pass(plan, walk):
        held = [*held, *cells]
        if any(cell.updates for cell in cells):
            yield held
            held = []


SYSTEM = System(
    name="far",
    title="FAR",
    paper="2503.19325",
    repository="showlab/FAR",
    plan=blocks(1),
    solver=solver(50),
    memory=Full(),
    num_frames=16,
    given_frames=1,
    calls_of=with_the_next,
    stores_last=False,
    exact="Calls and latents of its short context.",
    left_out="Logits that fall with distance; a long context of fewer tokens for each old frame.",
)


def from_spec(entry: Entry) -> System:
    if entry["long_context"]:
        raise ConfigError("far: a long context has frames of two token counts, which no plan here feeds")
    given = entry["context_frames"]
    return replace(
        SYSTEM, solver=solver(entry["steps"]), num_frames=given + entry["new_frames"], given_frames=given
    )
