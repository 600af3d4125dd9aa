# SPDX-License-Identifier: Apache-2.0
"""Every system, built from the entries of the golden index, does call by call what its own code did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ardiff_engine import systems
from ardiff_engine.errors import ConfigError, PlanError

GOLDEN = Path(__file__).parent / "golden" / "systems"
INDEX = json.loads((GOLDEN / "index.json").read_text())
ARRAYS = ("fed", "updated", "timestep", "written", "visible", "position", "key_call")

NOT_EXPRESSED: dict[str, str] = {
    "diffusion_forcing_pyramid_u05_F6_S5": "not written yet; see test_trace",
    "diffusion_forcing_pyramid_u1_F6_S5": "not written yet; see test_trace",
    "skyreels_v2_F5_S4_ar2": "not written yet; see test_trace",
    "skyreels_v2_F6_S8_ar3_block2": "not written yet; see test_trace",
}
"""Files of systems that are not expressed, and why."""


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def traced() -> list[str]:
    return [name for name in INDEX if (GOLDEN / f"{name}.npz").exists() and name not in NOT_EXPRESSED]


@pytest.mark.parametrize("name", traced())
def test_every_call_of_the_official_code(name: str) -> None:
    official = golden(name)
    ours = systems.from_spec(INDEX[name]).trace()
    for key in ARRAYS:
        if key in official:
            np.testing.assert_allclose(getattr(ours, key), official[key], rtol=1e-6, atol=0, err_msg=key)


def test_systems_by_name() -> None:
    for name in systems.names():
        assert systems.get(name).name == name
    with pytest.raises(ConfigError, match="unknown system"):
        systems.get("hair")
    with pytest.raises(ConfigError, match="unknown system"):
        systems.from_spec({"frames": 3})


def test_an_endless_system_needs_a_number_of_frames() -> None:
    with pytest.raises(PlanError, match="endless"):
        systems.get("longlive").trace()
    assert systems.get("longlive").trace(num_frames=9).fed.shape == (15, 9)


def drawn(official: dict[str, np.ndarray], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """What each frame starts from [F], and the noise of each of its updates [F, steps]."""
    frames = official["fed"].shape[1]
    start, noise = np.empty(frames), np.zeros((frames, steps))
    for frame in range(frames):
        start[frame] = official["x_in"][official["fed"][:, frame].argmax(), frame]
        if "renoise_eps" in official:
            eps = official["renoise_eps"][official["updated"][:, frame], frame]
            noise[frame, : len(eps)] = np.nan_to_num(eps)
    return start, noise


SOLVED_OTHERWISE = {
    "krea_ctx3_F15": "a first frame is encoded anew from pictures, which are not on record",
    "streamdiffusionv2_S2_K6_sink3": "the noise of its steps is not on record",
    "streamdiffusionv2_S4_K6_sink0_refresh9": "the noise of its steps is not on record",
    "magi1_C5_S8_W4_prefix9frames": "the first latent of a chunk is given, and recorded for the others",
}
"""Files whose latents before each call are not compared, and why."""


@pytest.mark.parametrize("name", traced())
def test_every_latent_of_the_official_code(name: str) -> None:
    official, ours = golden(name), systems.from_spec(INDEX[name])
    if "x_in" not in official:
        pytest.skip("no latents on record")
    start, noise = drawn(official, max(own.num_steps for own in ours.tracks))
    made = ours.trace(noise=start, step_noise=noise)
    if "final" in official:
        np.testing.assert_allclose(made.final, official["final"], rtol=1e-6, atol=1e-6)
    if name not in SOLVED_OTHERWISE:
        np.testing.assert_allclose(made.x_in, official["x_in"], rtol=1e-6, atol=1e-6)
