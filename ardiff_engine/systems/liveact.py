# SPDX-License-Identifier: Apache-2.0
"""SoulX-LiveAct: blocks of eight, three steps each with K/V of its own, no clean pass, old frames merged."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ardiff_engine.diffusion.solvers import Renoise
from ardiff_engine.memory import PerLevel, Run, Window
from ardiff_engine.plan import Plan, blocks
from ardiff_engine.systems.calls import Call, by_kind
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import SCHEDULE, Entry

FIRST, BLOCK = 6, 8
SINK, TAPS, MERGED = 2, 5, 2


def slots(plan: Plan, block: range) -> list[list[int]]:
    """The frames in each slot of the cache that a block reads: the sink, merged ones, the last two before the
    block, and its own. Before each block but the first two, TAPS slots become one, MERGED times."""
    held = [[frame] for frame in plan.block(0)]
    while held[-1][-1] < block[-1]:
        if len(held) > FIRST:
            runs = [held[SINK + i * TAPS : SINK + (i + 1) * TAPS] for i in range(MERGED)]
            held = held[:SINK] + [sum(run, []) for run in runs] + held[SINK + MERGED * TAPS :]
        held += [[frame] for frame in plan.block(held[-1][-1] + 1)]
    return held


def merged_slots(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
    """Merged frames are seen at the place of their slot, and places count from the first slot."""
    for cells in by_kind(plan, walk):
        held = slots(plan, plan.block(cells[0].frame))
        view = tuple(
            Run(frame, frame + 1, cells[0].copy, place - frame)
            for place, frames in enumerate(held)
            for frame in frames
        )
        yield [cell._replace(view=view) for cell in cells]


SYSTEM = System(
    name="soulx-liveact",
    title="SoulX-LiveAct",
    paper="",
    repository="Soul-AILab/SoulX-LiveAct",
    plan=blocks(BLOCK, first=FIRST),
    solver=Renoise(SCHEDULE, SCHEDULE.warp([1000, 750, 500])),
    memory=PerLevel(Window(BLOCK + 2, sink=2), "same"),
    num_frames=FIRST + 2 * BLOCK,
    calls_of=merged_slots,
    stores_last=False,
    exact="Calls, places, and what each token of each slot holds; the merge itself (`ops.pool_pages_`).",
    left_out="Merged slots, and the places that count from the first slot, are traced, not served.",
)


def from_spec(entry: Entry) -> System:
    """config: the number of blocks comes first."""
    return replace(SYSTEM, num_frames=FIRST + BLOCK * (int(entry["config"][0]) - 1))
