# SPDX-License-Identifier: Apache-2.0
"""Forcing-KV: heads that need a sink and the last frame alone, beside heads that look further back. Which
ones is measured for each checkpoint: `memory_of` makes the memory of a table [layers][heads]."""

from collections.abc import Sequence
from dataclasses import replace

from ardiff_engine.memory import PerLayer, Segments, Window
from ardiff_engine.systems import self_forcing


def memory_of(static: Sequence[Sequence[bool]], block: int = 3, segments: int = 6) -> Segments:
    """static: of each head of each layer; the first layer sees everything. Beside the first frame and its own
    block a head sees the last frame before it; one that is not static, a frame of chosen segments too."""
    memories = (Window(21), Window(block + 1, sink=1), Window(block + 1, sink=1))
    rows = [tuple([1 if own else 2 for own in row]) for row in static]
    return Segments(PerLayer(memories, (0, *rows[1:])), seeing=2, segments=segments)


SYSTEM = replace(
    self_forcing.SYSTEM,
    name="forcing-kv",
    title="Forcing-KV",
    paper="",
    repository="zju-jiyicheng/Forcing-KV",
    memory=memory_of([[True] * 6 + [False] * 6] * 30),
    exact="Its choice of segments; what its heads see, segments included, against attention in float64.",
    left_out="The heads of its checkpoints: give their table to `memory_of`. The choice after the first "
    "block, of its three frames, is ours. The picture shows the first layer.",
)
