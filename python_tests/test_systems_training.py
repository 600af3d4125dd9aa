# SPDX-License-Identifier: Apache-2.0
"""What systems draw in training, against what their own code drew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ardiff_engine import systems
from ardiff_engine.errors import ConfigError
from ardiff_engine.systems.official.lumos1_training import KINDS, trained
from ardiff_engine.systems.official.training_draws import Prefixes, estimated

GOLDEN = Path(__file__).parent / "golden" / "systems"
INDEX = json.loads((GOLDEN / "index.json").read_text())


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("fvdm_ptss", ("timestep", "per_frame")),
        ("ca2_vdm_training", ("prefix_choices", "prefix_length")),
        (
            "epona_chain_cf4_x3",
            ("context_frame", "context_depth", "target_frame", "target_depth", "iteration_forwards_steps"),
        ),
    ],
)
def test_every_draw_of_the_official_code(name: str, keys: tuple[str, ...]) -> None:
    official, training = golden(name), systems.from_spec(INDEX[name])
    for made in (training.trace(), training.trace()):
        for key in keys:
            np.testing.assert_array_equal(getattr(made, key), official[key], err_msg=key)


@pytest.mark.parametrize("case", ["loss0", "loss1"])
def test_a_prefix_is_told_zero(case: str) -> None:
    official = golden("ca2_vdm_training")
    told = official[f"{case}_t_fed"]
    for row, timestep in zip(told, official[f"{case}_t"], strict=True):
        own = Prefixes.timestep(int(official[f"{case}_prefix"]), told.shape[1], int(timestep))
        np.testing.assert_array_equal(own, row)


@pytest.mark.parametrize("kind", ["causal", "partial"])
def test_who_sees_whom_in_training(kind: str) -> None:
    seen = golden("ca2_vdm_training")[f"train_visible_{kind}_prefix3_T7"]
    np.testing.assert_array_equal(Prefixes.visible(3, 7, kind == "partial"), seen)


def test_a_chain_goes_on_with_its_estimates() -> None:
    official = golden("epona_chain_cf4_x3")
    made = estimated(official["target"], official["noise"], official["flow_t"])
    np.testing.assert_allclose(made, official["predict"], rtol=1e-5, atol=1e-6)
    # All but the new frame of a forward are the estimates of the one before.
    np.testing.assert_allclose(official["target"][1:, :-1], official["predict"][:-1, 1:], rtol=1e-6)


def test_training_that_is_not_expressed_is_refused() -> None:
    with pytest.raises(ConfigError, match="training"):
        systems.from_spec({"system": "longlive", "mode": "training"})


def test_lumos_masks_sees_and_turns_as_its_code() -> None:
    """All arrays but token ids, which are input, and masks of history, which have a test of their own."""
    official = golden("lumos1_training_rope")
    state = torch.random.get_rng_state()
    made = vars(systems.from_spec(INDEX["lumos1_training_rope"]).trace())
    assert torch.equal(torch.random.get_rng_state(), state)
    inputs = {"sequence", "config"} | {name for name in official if name.startswith("history_")}
    assert made.keys() == official.keys() - inputs
    for name, own in made.items():
        tolerance = 5e-6 if name.startswith("mm_rope") else 0  # their angles are float32
        np.testing.assert_allclose(own, official[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("frames", [1, 4])
def test_a_tube_that_grows_covers_the_last_frame(frames: int) -> None:
    made = vars(trained(3, 5, frames, seed=7))
    visual = made["position_is_visual"].astype(bool)
    tokens = 3 * 6
    for kind in KINDS:
        sequence = made[f"{kind}_0_masked_sequence"]
        assert sequence.shape == (2, 6 + frames * (tokens + 4) + 2) and not sequence[:, ~visual].any()
    tube, grown = (made[f"{kind}_0_masked_sequence"][:, visual].reshape(2, frames, -1) for kind in KINDS[:2])
    assert (tube == tube[:, :1]).all()
    assert (grown[:, 1:] >= grown[:, :-1]).all() and (frames == 1 or grown[:, -1].all())
