# SPDX-License-Identifier: Apache-2.0
"""CausalCine: beside a window of three blocks, each block sees five earlier frames that a router chooses.
`replace(system.memory.memory, router=memory.MeanKeys())` chooses by their keys."""

from dataclasses import replace

from ardiff_engine.memory import Placed, Routed, Window
from ardiff_engine.plan import blocks
from ardiff_engine.systems import self_forcing

SYSTEM = replace(
    self_forcing.SYSTEM,
    name="causalcine",
    title="CausalCine",
    paper="2605.12496",
    repository="no public code",
    plan=blocks(3),
    memory=Placed(Routed(Window(12), 5, history=180), "window"),
    exact="No public code; under a router of the test's own, views and places as its paper says.",
    left_out="A choice for each layer: pages serve all layers at one place. Queries: the mean keys of the "
    "block before stand for them.",
)
