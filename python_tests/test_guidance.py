# SPDX-License-Identifier: Apache-2.0
"""Guidance weights."""

from __future__ import annotations

import math

import pytest
import torch

from ardiff_engine.diffusion import Guidance
from ardiff_engine.errors import ConfigError


def test_scale_one_needs_one_branch() -> None:
    assert Guidance(1.0).weights() == (1.0,)
    assert Guidance().num_branches == 1


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5, -1.0])
def test_weights_are_the_guidance_formula(scale: float) -> None:
    conditional, unconditional = torch.randn(2, 5, dtype=torch.float64)
    weights = Guidance(scale).weights()
    assert len(weights) == Guidance(scale).num_branches == 2
    assert sum(weights) == pytest.approx(1.0)
    got = weights[0] * conditional + weights[1] * unconditional
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, "2", None])
def test_scale_must_be_a_finite_number(scale: object) -> None:
    with pytest.raises(ConfigError):
        Guidance(scale)
