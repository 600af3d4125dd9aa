# SPDX-License-Identifier: Apache-2.0
"""Rolling Forcing: a window of blocks at successive levels that see each other, and a sink before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import Placed, Run, Window
from ardiff_engine.plan import Plan, rolling
from ardiff_engine.systems.calls import Call, by_kind
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE, Entry, frames, renoise


def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """A window stores its oldest block as it is. The clean pass over that block follows also while the window
    fills: it then stores an estimate, which nobody reads."""
    for cells in by_kind(plan, walk):
        head = plan.block(cells[0].frame)
        yield [cell._replace(written=cell.frame in head) for cell in cells]
        first = cells[0]
        if first.updates and first.level + 1 < plan.num_steps:
            alone = (Run(head.start, head.stop),)
            clean = first._replace(updates=False, level=plan.num_steps, view=alone, estimate=True)
            yield [clean._replace(frame=frame) for frame in head]


SYSTEM = System(
    name="rolling-forcing",
    title="Rolling Forcing",
    paper="2509.25161",
    repository="TencentARC/RollingForcing",
    plan=rolling(5, block=3),
    solver=Renoise(SCHEDULE, SCHEDULE.warp([1000, 800, 600, 400, 200])),
    memory=Placed(Window(18, sink=3, joint=True, stored=21), "anchored"),
    calls_of=calls_of,
    exact="Calls and latents.",
    left_out="Clean passes over estimates of the first block, which nobody reads: traced, not run.",
)


def from_spec(entry: Entry) -> System:
    size = entry["block"]
    return replace(
        SYSTEM,
        plan=rolling(len(entry["timesteps"]), block=size),
        solver=renoise(entry),
        memory=Placed(Window(21 - size, sink=size, joint=True, stored=21), "anchored"),
        num_frames=frames(entry),
    )
