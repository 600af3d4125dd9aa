# SPDX-License-Identifier: Apache-2.0
"""Systems in sizes that no file records: every golden entry with other frames, steps, windows and blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ardiff_engine import systems

INDEX = json.loads((Path(__file__).parent / "golden" / "systems" / "index.json").read_text())
TWO_STEPS = [1000.0, 833.3333]

SIZES: dict[str, list[dict[str, Any]]] = {
    "acdit": [{"blocks": 6}, {"blocks": 1}, {"steps": 1, "timesteps": [999]}],
    "ca2-vdm": [
        {"block": 4, "new_frames": 16, "cache_frames": 9, "position_table": 13},
        {"given_frames": 3, "block": 2, "new_frames": 6},
        {"steps": 1},
    ],
    "causal-forcing": [{"new_frames": 9}, {"given_frames": 1}, {"block": 3, "new_frames": 9}],
    "causvid": [{"frames": 15}, {"block": 1}, {"overlap": 6, "frames": 12}],
    "diagonal-distillation": [{"new_frames": 9}, {"block": 1}, {"new_frames": 30}],
    "diffusion-forcing": [{"steps": 12}, {"uncertainty_scale": 2.0}, {"chunk": 1}, {"schedule": "trapezoid"}],
    "epona": [{"condition_frames": 3}, {"new_frames": 8}, {"steps": 7}],
    "far": [{"new_frames": 6}, {"window": 5, "context_frames": 4}, {"steps": 5}],
    "fifo-diffusion": [{"partitions": 3}, {"new_frames": 20}, {"partitions": 1, "lookahead": True}],
    "fvdm": [{"window": 8}, {"steps": 7}, {"chunks": 5, "condition_frames": 3, "window": 7}],
    "generative-view-stitching": [
        {"config": [20, 2, 4, 2, 5, 1000, 1]},
        {"config": [12, 3, 6, 3, 4, 1000, 1]},
        {"config": [10, 1, 2, 1, 4, 1000, 0]},
    ],
    "hiar": [{"new_frames": 15}, {"block": 1, "new_frames": 6}, {"timesteps": TWO_STEPS}],
    "infinity-rope": [{"window": 9}, {"sink": 2}, {"timesteps": TWO_STEPS}],
    "krea-realtime": [{"blocks": 8}, {"context": 6}, {"block": 2}],
    "soulx-liveact": [{"config": [6, 0, 10]}, {"config": [2, 0, 10]}, {"config": [1, 0, 10]}],
    "longlive": [{"window": 9}, {"sink": 6, "window": 15}, {"timesteps": TWO_STEPS}],
    "longlive2": [
        {"new_frames": 15, "given_frames": 1, "block": 4, "window": 12, "sink": 4, "cut_blocks": [2]},
        {"relative_rope": True},
        {"multi_shot_sink": False},
    ],
    "lumos-1": [{"latent_frames": 5}, {"width_pixels": 96}, {"steps": 9}],
    "magi-1": [{"chunks": 8}, {"given_pixel_frames": 24, "chunks": 7}, {"all_history": True}],
    "mmpl": [{"steps": 5}, {"mode": "image"}, {"mode": "segment"}],
    "pusa": [
        {"multipliers": [0.0, 1.0, 1.0, 0.0]},
        {"multipliers": [1.0] * 7},
        {"timesteps": TWO_STEPS},
    ],
    "rolling-forcing": [{"new_frames": 45}, {"block": 1, "new_frames": 9}, {"timesteps": TWO_STEPS}],
    "self-forcing": [{"window": 9, "sink": 2}, {"timesteps": TWO_STEPS}, {"new_frames": 24, "block": 4}],
    "skyreels-v2": [{"steps": 9}, {"ar_step": 1}, {"ar_step": 99}],
    "starflow-v": [{"frames": 5}, {"grid": 2}, {"jacobi_block": 8}],
    "streamdiffusion-v2": [{"cache_frames": 8}, {"sink": 1}, {"refresh": 12}],
}
"""Of each system, what is changed in each of its entries."""

ANY_NUMBER_OF_STEPS = {
    "diffusion-forcing": "its trapezoid ends too early, and leaves out a frame",
    "fifo-diffusion": "its queue is cut where the video ends",
    "fvdm": "frames that condition the next chunk move again",
    "lumos-1": "a step is a call for each of two branches",
    "starflow-v": "an iteration is a step",
    "streamdiffusion-v2": "its trace ends while the pipeline is full",
}

WHOLE_BLOCKS = {
    ("self_forcing_i2v_1_4_4", 2): {"new_frames": 24},
    ("self_forcing_prefix3_F9", 2): {"given_frames": 4},
}
"""Lengths that fit the blocks of an entry and of that change of it."""

CASES = [
    (name, change | WHOLE_BLOCKS.get((name, number), {}))
    for name, entry in INDEX.items()
    if "training" not in str(entry.get("mode"))
    for number, change in enumerate(SIZES[entry["system"]])
]


@pytest.mark.parametrize(("name", "change"), CASES, ids=[f"{name}-{change}" for name, change in CASES])
def test_other_sizes(name: str, change: dict[str, Any]) -> None:
    entry = INDEX[name] | change
    own = systems.from_spec(entry)
    assert isinstance(own, systems.System)
    made = own.trace()
    assert made.updated.any() and not (made.updated & ~made.fed).any()
    assert (np.isnan(made.timestep) == ~made.fed).all()
    assert (made.key_call <= np.arange(len(made.fed))[:, None]).all()
    seen_by_fed = made.visible & made.fed[:, :, None]
    assert (made.visible == seen_by_fed).all()
    if entry["system"] not in ANY_NUMBER_OF_STEPS:
        steps = {0, *(solver.num_steps for solver in own.tracks)}
        assert set(made.updated.sum(axis=0).tolist()) <= steps
