# SPDX-License-Identifier: Apache-2.0
"""Forcing-KV: heads that need a sink and the last frame alone, beside heads that look further back. Which
ones is measured for each checkpoint: `memory_of` makes the memory of a table [layers][heads]."""

from collections.abc import Sequence
from dataclasses import replace

from ardiff_engine.memory import PerLayer, Window
from ardiff_engine.systems import self_forcing
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import Entry, sized


def memory_of(
    static: Sequence[Sequence[bool]], *, block: int = 3, recent: int = 1, chosen: int = 1
) -> PerLayer:
    """static: of each head of each layer; the first layer sees everything. Beside the first frame and its own
    block a static head sees one frame, another one `recent` and `chosen` ones: the last of them."""
    memories = (Window(21), Window(block + 1, sink=1), Window(block + recent + chosen, sink=1))
    rows = [tuple([1 if own else 2 for own in row]) for row in static]
    return PerLayer(memories, (0, *rows[1:]))


SYSTEM = replace(
    self_forcing.SYSTEM,
    name="forcing-kv",
    title="Forcing-KV",
    paper="",
    repository="zju-jiyicheng/Forcing-KV",
    memory=memory_of([[True] * 6 + [False] * 6] * 30),
    exact="Views of its heads against dense attention in float64.",
    left_out="Segments of old frames by the likeness of their keys, which its other heads see: here they see "
    "as many of the last frames. The heads of its checkpoints: give their table to `memory_of`. "
    "The picture shows the first layer.",
)


def from_spec(entry: Entry) -> System:
    return replace(sized(SYSTEM, entry), memory=memory_of(entry["static_heads"], block=int(entry["block"])))
