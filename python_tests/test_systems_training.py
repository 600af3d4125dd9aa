# SPDX-License-Identifier: Apache-2.0
"""What systems draw in training, against what their own code drew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ardiff_engine import systems
from ardiff_engine.errors import ConfigError
from ardiff_engine.systems.training_draws import Prefixes, estimated

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
        systems.from_spec(INDEX["lumos1_training_rope"])
