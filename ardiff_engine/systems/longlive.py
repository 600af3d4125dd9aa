# SPDX-License-Identifier: Apache-2.0
"""LongLive 1.0: Self-Forcing with a sink of three frames; a new prompt computes the cache again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ardiff_engine.memory import Recached, Window
from ardiff_engine.plan import Plan
from ardiff_engine.systems import self_forcing
from ardiff_engine.systems.calls import Call, CallsOf, by_kind
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, sized, window

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="longlive",
    title="LongLive",
    paper="2509.22622",
    repository="NVlabs/LongLive (v1.0)",
    memory=Window(9, sink=3),
    on_prompt="recommit",
    exact="Calls and latents; new prompts, with a sink that stays and one that moves.",
    left_out="In the pass after a new prompt its frames see later ones; `Stream.set_condition` is causal.",
)


def recaching(prompts: tuple[int, ...], reach: int) -> CallsOf:
    """Before the cache is computed again its last block is stored, for nobody; and all frames that are within
    reach are fed for it, also those that it has no room for beside a sink that stays."""

    def calls_of(plan: Plan, walk: Iterable[Call]) -> Iterator[Call]:
        last: Call = []
        for cells in walk:
            stored, *moved = by_kind(plan, [cells])
            start = moved[0][0].frame if moved else 0
            if start in prompts and moved[0][0].level == 0:
                yield [cell._replace(updates=False, level=cell.level + 1) for cell in last]
                unused = range(max(0, start - reach), stored[0].frame)
                stored = [stored[0]._replace(frame=frame, written=False) for frame in unused] + stored
            yield stored
            yield from moved
            last = [cell for cell in cells if cell.updates]

    return calls_of


def from_spec(entry: Entry) -> System:
    size = entry["block"]
    prompts = tuple(-(-frame // size) * size for frame in entry.get("switch_at", ()))
    system = sized(SYSTEM, entry)
    if not prompts:
        return system
    memory = Recached(window(entry), prompts, entry["global_sink"])
    return replace(system, memory=memory, calls_of=recaching(prompts, memory.reach))
