# SPDX-License-Identifier: Apache-2.0
"""PUSA: all frames together, each with a multiplier of the timesteps: 0 gives a frame, 0.5 holds it."""

from collections.abc import Sequence

from ardiff_engine.memory.windows import Windows
from ardiff_engine.plan import together
from ardiff_engine.systems.official.pusa import scaled
from ardiff_engine.systems.official.window_calls import given_at
from ardiff_engine.systems.system import System
from ardiff_engine.systems.wan_family import FOUR_STEPS


def system(multipliers: Sequence[float], timesteps: Sequence[float]) -> System:
    kinds = sorted(set(multipliers))
    frames = len(multipliers)
    return System(
        name="pusa",
        title="PUSA V1.0",
        paper="2507.16116",
        repository="Yaofang-Liu/Pusa-VidGen",
        plan=together([kinds.index(own) for own in multipliers]),
        solver=tuple(scaled(timesteps, own) for own in kinds),
        memory=Windows(((0, frames),), joint=True),
        num_frames=frames,
        calls_of=given_at([f for f, own in enumerate(multipliers) if own == 0]),
        stores_last=False,
        exact="Calls and latents, with given and with loosened frames.",
        left_out="Frames given anywhere but at the start: traced, not served.",
    )


# Frames that are given come as such; the others of a text-to-video run all move in full.
SYSTEM = system([1.0] * 21, FOUR_STEPS.timesteps.tolist()[:-1])
