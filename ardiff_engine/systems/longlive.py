# SPDX-License-Identifier: Apache-2.0
"""LongLive 1.0: Self-Forcing with a sink of three frames; a new prompt computes the cache again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ardiff_engine.memory import Recached, Window
from ardiff_engine.plan import Plan, blocks
from ardiff_engine.systems.calls import Call, CallsOf, by_kind
from ardiff_engine.systems.self_forcing import SYSTEM as SELF_FORCING
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, frames, renoise

SYSTEM = replace(
    SELF_FORCING,
    name="longlive",
    title="LongLive",
    paper="2509.22622",
    repository="NVlabs/LongLive (v1.0)",
    memory=Window(9, sink=3),
    on_prompt="recommit",
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
    window = Window(entry["window"] - entry["sink"], entry["sink"])
    prompts = tuple(-(-frame // size) * size for frame in entry.get("switch_at", ()))
    memory = Recached(window, prompts, entry["global_sink"]) if prompts else window
    return replace(
        SYSTEM,
        plan=blocks(size),
        solver=renoise(entry),
        memory=memory,
        num_frames=frames(entry),
        calls_of=recaching(prompts, entry["window"]),
    )
