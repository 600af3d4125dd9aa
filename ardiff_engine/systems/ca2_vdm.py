# SPDX-License-Identifier: Apache-2.0
"""Ca2-VDM: blocks over a cache that all steps share, clean frames at timestep 0, places in a ring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch

from ardiff_engine.diffusion import NoiseSchedule
from ardiff_engine.diffusion.prediction import x0_weights
from ardiff_engine.diffusion.solvers import Table
from ardiff_engine.diffusion.solvers.solver import coefficient_table
from ardiff_engine.memory import Placed, Window
from ardiff_engine.plan import Plan, blocks
from ardiff_engine.systems.calls import Call, CallsOf, Cell, by_kind
from ardiff_engine.systems.system import System
from ardiff_engine.systems.trace import Trace
from ardiff_engine.systems.training_draws import Training, prefixes
from ardiff_engine.systems.wan_family import Entry


def solver(steps: int) -> Table:
    """DDPM over `steps` of 1000 timesteps, with a variance halfway between its bounds, as logarithms."""
    stride = 999 / (steps - 1) if steps > 1 else 1.0
    told = [round(i * stride) for i in range(steps)]
    now = NoiseSchedule.linear(1e-4, 0.02).alphas_cumprod[torch.tensor(told)]
    before = torch.cat([torch.ones(1, dtype=torch.float64), now[:-1]])
    beta = 1 - now / before
    least = beta * (1 - before) / (1 - now)
    least[0] = least[min(1, steps - 1)]
    noise = (least * beta) ** 0.25
    noise[0] = 0.0
    b = beta * before.sqrt() / (1 - now)
    a = (1 - before) * (1 - beta).sqrt() / (1 - now)
    rows = coefficient_table(x0_weights(now.sqrt(), (1 - now).sqrt(), "eps"), a, b, noise)
    return Table([*map(float, reversed(told)), 0.0], rows.flip(0), waiting=999.0)


def causal(moving: bool) -> CallsOf:
    """Frames of a block see themselves and earlier ones when they are stored, and (moving) when they move."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        for cells in by_kind(plan, walk):
            kept = [cell._replace(written=not cell.updates) for cell in cells]
            yield [cell if cell.updates and not moving else _up_to_itself(cell) for cell in kept]

    return calls_of


def _up_to_itself(cell: Cell) -> Cell:
    return cell._replace(view=tuple([own._replace(stop=min(own.stop, cell.frame + 1)) for own in cell.view]))


def in_a_ring(rows: int) -> Callable[[Trace], Trace]:
    """Places are rows of a table that is used again from its start."""

    def of(trace: Trace) -> Trace:
        return replace(trace, position=trace.position % rows)

    return of


SYSTEM = System(
    name="ca2-vdm",
    title="Ca2-VDM",
    paper="2411.16375",
    repository="Dawn-LX/CausalCache-VDM",
    plan=blocks(8, first=1),
    solver=solver(100),
    memory=Window(33),
    fps=8,
    num_frames=41,
    given_frames=1,
    calls_of=causal(True),
    recorded=in_a_ring(33),
    exact="Calls and latents; places in a ring and those that count from the window, causal in part.",
    left_out="Blocks are causal within in the trace, and see all of themselves when served. Noised prefixes.",
)


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
