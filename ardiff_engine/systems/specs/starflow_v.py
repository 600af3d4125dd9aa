# SPDX-License-Identifier: Apache-2.0
"""STARFlow-V in the sizes of an entry."""

from dataclasses import replace

from ardiff_engine.diffusion.agreement import Agreement
from ardiff_engine.memory import Full, Window
from ardiff_engine.systems.official.token_flow import TokenFlow
from ardiff_engine.systems.official.token_levels import levels
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.starflow_v import SYSTEM


def from_spec(entry: Entry) -> TokenFlow:
    window = entry.get("window")
    return replace(
        SYSTEM,
        solver=levels(entry["blocks"]),
        memory=Window(window) if window else Full(),
        num_frames=entry["frames"],
        guidance=entry["guidance"],
        grid=entry["grid"],
        chunk=entry["jacobi_block"],
        agreement=Agreement(entry["threshold"], entry["max_iterations"]),
        text_tokens=entry["text_tokens"],
        blocks=entry["blocks"],
        window=window,
        context=entry.get("context_frames", 0),
    )
