# SPDX-License-Identifier: Apache-2.0
"""The comparison of a student with its teacher: its score, its truth, and that both arms are paired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ardiff_engine.evaluation import distilled_gaussian
from ardiff_engine.evaluation.distilled_gaussian import Comparison, energy_score, exact
from ardiff_engine.evaluation.gaussian_bed import PROCESS
from ardiff_engine.evaluation.gaussian_video import ar2_covariance
from ardiff_engine.evaluation.trained_gaussian import GaussianClips


def test_the_score_is_that_of_its_formula() -> None:
    samples = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]], dtype=torch.float64)
    truth = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    far, apart = (0 + 5 + 1) / 3, (5 + 1 + 18**0.5) / 3
    assert np.allclose(energy_score(samples, truth), (far - apart / 2) / 2**0.5)


def test_no_law_scores_less_than_the_true_one() -> None:
    videos, _ = GaussianClips(0).held_out().latents(range(300))
    truth, made = videos[:, 8:, 0].double(), exact(videos, 1)
    whole = ar2_covariance(16, *PROCESS)
    middle = (whole[8:, :8] @ torch.linalg.solve(whole[:8, :8], videos[:, :8, 0].double()))[:, None]
    least = energy_score(made, truth).mean()
    for other in (middle + 0.7 * (made - middle), middle + 1.4 * (made - middle), made + 0.2, 0 * made):
        assert energy_score(other, truth).mean() > least


def test_arms_are_paired_by_seed_and_clip() -> None:
    clips = np.random.default_rng(0).normal(1, 1, (2, 40))
    found = Comparison({"teacher": {1: clips, 50: clips}, "student": {1: clips - 0.1}}, clips[0], clips[1])
    assert np.allclose([found.difference(1).low, found.difference(1).high], -0.1)
    assert [row[0] for row in found.table().rows] == ["1", "50", "true law", "last frame held"]


def test_a_small_comparison(tmp_path: Path) -> None:
    found = distilled_gaussian.compare(tmp_path, [0], steps=1, student_steps=1, few=[1], clips=2)
    assert found.scores["student"][1].shape == found.scores["teacher"][50].shape == (1, 2)
    again = distilled_gaussian.compare(tmp_path, [0], steps=1, student_steps=1, few=[1], clips=2)
    assert np.array_equal(again.scores["student"][1], found.scores["student"][1])
