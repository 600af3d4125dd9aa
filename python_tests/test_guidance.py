# SPDX-License-Identifier: Apache-2.0
"""Branches and their weights, without an engine."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ardiff_engine.diffusion import Branch
from ardiff_engine.diffusion.guidance import classifier_free, weight_table
from ardiff_engine.errors import ConfigError


def test_scale_one_needs_one_branch() -> None:
    (only,) = classifier_free(3, 4, 1.0)
    assert only.condition == 3 and only.weights((2,)) == (1.0, 1.0)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5, -1.0])
def test_weights_are_the_guidance_formula(scale: float) -> None:
    conditional, unconditional = torch.randn(2, 5, dtype=torch.float64)
    branches = classifier_free(1, None, scale)
    assert [branch.condition for branch in branches] == [1, "null"]
    (first,), (second,) = (branch.weights((1,)) for branch in branches)
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(first * conditional + second * unconditional, expected, rtol=1e-14, atol=1e-14)


def test_a_weight_for_every_level_of_every_track() -> None:
    steps = (3, 2)
    tracks = Branch(weight=[np.arange(3.0), torch.tensor([7.0, 8.0])])
    table = weight_table([Branch(weight=2), tracks], steps)
    assert table.dtype == np.float32 and table.tolist() == [[2.0] * 5, [0.0, 1.0, 2.0, 7.0, 8.0]]
    assert weight_table([Branch(weight=torch.tensor([1.0, 0.5]))], (2,)).tolist() == [[1.0, 0.5]]


@pytest.mark.parametrize(
    "weight", [math.nan, math.inf, "2", None, [], [1.0, math.nan], [[1.0], 2.0], [[[1.0]]], {1: 2}, ["1"]]
)
def test_weights_must_be_finite_numbers(weight: object) -> None:
    with pytest.raises(ConfigError, match="weight"):
        Branch(weight=weight)


@pytest.mark.parametrize(
    ("weight", "steps"), [([1.0, 2.0], (3,)), ([1.0] * 5, (3, 2)), ([[1.0] * 3], (3, 2))]
)
def test_as_many_weights_as_steps(weight: list, steps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="steps"):
        Branch(weight=weight).weights(steps)
