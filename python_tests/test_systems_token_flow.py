# SPDX-License-Identifier: Apache-2.0
"""Flows over tokens: every event of STARFlow-V's own code, and the stop rule by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ardiff_engine import systems
from ardiff_engine.diffusion.agreement import Agreement
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.systems.official.token_flow import RECORDED, TokenFlow, guided

GOLDEN = Path(__file__).parent / "golden" / "systems"
INDEX = json.loads((GOLDEN / "index.json").read_text())
NAMES = [name for name, entry in INDEX.items() if entry["system"] == "starflow-v"]


def built(name: str) -> tuple[dict[str, np.ndarray], TokenFlow]:
    system = systems.from_spec(INDEX[name])
    assert isinstance(system, TokenFlow)
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data), system


@pytest.mark.parametrize("name", NAMES)
def test_every_event_and_latent_of_the_official_code(name: str) -> None:
    official, system = built(name)
    made = system.trace(noise=official["z"][0], text=official["y"])
    rows = len(made.events["block"])
    # A second run follows on record, token by token.
    assert rows == len(official["block"]) or official["tokens"][rows + 1] == 1
    for key in RECORDED:
        # The residual of float32 is rounding where two iterations are alike.
        near = {"rtol": 1e-3, "atol": 1e-9} if key == "residual" else {"rtol": 0.0, "atol": 0.0}
        np.testing.assert_allclose(made.events[key], official[key][:rows], **near, err_msg=key)
    np.testing.assert_allclose(made.after_each_block, official["after_each_block"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if "long" not in name])
def test_chunks_of_one_token_are_the_exact_inverse(name: str) -> None:
    official, system = built(name)
    exact = replace(system, agreement=Agreement(0.0, 64), chunk=1)
    made = exact.trace(noise=official["z"][0], text=official["y"])
    np.testing.assert_allclose(made.after_each_block[-1], official["x_sequential"][0], rtol=1e-5, atol=2e-6)
    assert abs(official["x"] - official["x_sequential"]).max() > 1e-3


def test_guidance_of_gaussians() -> None:
    official, _ = built(NAMES[0])
    mean, scale = (torch.tensor(official[f"guidance_{key}_in"]) for key in ("mu", "sigma"))
    mean, scale = guided(mean, scale, float(official["guidance_w"]))
    np.testing.assert_allclose(mean[0], official["guidance_mu"][0], rtol=1e-6)
    np.testing.assert_allclose(scale[0], official["guidance_sigma"][0], rtol=1e-6)


def test_what_is_not_agreed_is_rolled_back() -> None:
    made = systems.get("starflow-v").trace(num_frames=2)
    event = made.events
    kept = np.where(event["kind"] == 1, event["rolled_back"], 0)
    again = np.flatnonzero(kept > 0)
    np.testing.assert_array_equal(event["cache_before"][again + 1], event["cache_before"][again])
    assert not event["accepted"][again].any() and len(again)


def test_iterations_end_by_agreement_or_by_number() -> None:
    def halves(x: torch.Tensor, number: int) -> torch.Tensor:
        return 1 + x / 2

    start = torch.zeros(3, dtype=torch.float64)
    walked = list(Agreement(1e-6, 50).reached(start, halves))
    assert [own.agreed for own in walked] == [False] * (len(walked) - 1) + [True]
    assert walked[-1].residual < 1e-6 <= walked[-2].residual
    assert torch.allclose(walked[-1].x, torch.full((3,), 2.0, dtype=torch.float64), atol=1e-2)
    assert [own.agreed for own in Agreement(0.0, 3).reached(start, halves)] == [False, False, True]
    with pytest.raises(ConfigError, match="iteration"):
        Agreement(0.1, 0)


def test_shapes_are_checked() -> None:
    system = systems.get("starflow-v")
    with pytest.raises(TensorError, match="noise"):
        system.trace(noise=np.zeros((2, 2, 3, 3)))
    with pytest.raises(TensorError, match="text"):
        system.trace(noise=np.zeros((2, 2, 8, 8)), text=np.zeros((1, 3, 2)))
