# SPDX-License-Identifier: Apache-2.0
"""Diffusion Forcing in the sizes of an entry."""

from __future__ import annotations

from dataclasses import replace

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.windows import Windows, trailing
from ardiff_engine.plan import Rule, parts, pyramid, trapezoid
from ardiff_engine.systems.diffusion_forcing import SYSTEM
from ardiff_engine.systems.official.diffusion_forcing import as_coded, solver
from ardiff_engine.systems.official.window_calls import cut_to
from ardiff_engine.systems.specs.entry import Entry
from ardiff_engine.systems.system import System


def from_spec(entry: Entry) -> System:
    frames, given, steps = entry["frames"], entry["context_frames"], entry["steps"]
    chunk = entry["chunk"] if entry["chunk"] > 0 else frames
    ends = [*range(given + chunk, frames, chunk), frames]
    if max(ends[0] - given, chunk if ends[1:] else 0) > entry["window"]:
        raise ConfigError(f"diffusion-forcing: chunks of {chunk} frames in a window of {entry['window']}")
    windows = Windows(trailing(ends, entry["window"]))
    kinds: dict[str, float] = {"ar": float(steps), "fullseq": 0.0, "ddpm": 0.0}
    own: float = entry["uncertainty_scale"]
    uncertainty = kinds.get(entry["schedule"], own)
    rule: Rule = pyramid(uncertainty)
    calls = cut_to(windows)
    if entry["schedule"] == "trapezoid":
        rule, calls = trapezoid(uncertainty, behind=1), as_coded(uncertainty, windows, [given, *ends])
    total = entry["training_timesteps"]
    return replace(
        SYSTEM,
        plan=parts(rule, ends),
        solver=solver(total, steps, entry["stabilization"], entry["eta"], entry["clip_noise"]),
        memory=windows,
        num_frames=frames,
        given_frames=given,
        calls_of=calls,
    )
