# SPDX-License-Identifier: Apache-2.0
"""The comparison of training rules: its states and its exact estimates, and that it goes on where it
stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.evaluation import trained_gaussian
from ardiff_engine.evaluation.gaussian_bed import PROCESS
from ardiff_engine.evaluation.gaussian_video import ar2_covariance
from ardiff_engine.evaluation.trained_gaussian import FRAMES, PIXELS, Comparison, GaussianClips, states


def test_clips_have_the_covariance_of_the_process() -> None:
    videos, _ = GaussianClips(3).latents(range(4000))
    pixels = videos[:, :, 0].movedim(1, 2).reshape(-1, FRAMES).double()
    assert torch.allclose(pixels.T @ pixels / len(pixels), ar2_covariance(FRAMES, *PROCESS), atol=0.03)
    held, _ = GaussianClips(3).held_out().latents(range(2))
    assert not (held[:, None] == videos[None]).flatten(2).all(dim=2).any()
    torch.testing.assert_close(GaussianClips(3).latents([7, 2])[0], videos[[7, 2]])


@pytest.mark.parametrize("lag", [0, 5, 50])
def test_states_are_those_of_the_plan(lag: int) -> None:
    found = states(lag, 200, seed=1)
    assert found.noisy.shape == (200, FRAMES, 1, PIXELS) and bool((found.t.diff(dim=1) >= 0).all())
    assert bool(found.moving.any(dim=1).all())
    if lag == 0:
        assert bool((found.t == found.t[:, :1]).all()) and bool(found.moving.all())
    if lag == 50:
        assert bool((found.moving.sum(dim=1) == 1).all())
    spread = (
        NoiseSchedule.sqrt_linear().sigma(found.t) ** 2 + NoiseSchedule.sqrt_linear().signal(found.t) ** 2
    )
    assert torch.allclose(spread, torch.ones_like(spread))


def test_exact_estimates_beat_all_others() -> None:
    """The conditional mean has the least error of all estimates; and the engine's exact denoiser gives the
    same."""
    found = states(5, 400, seed=0)
    videos, _ = GaussianClips(0).held_out().latents(range(400))

    def error(estimate: torch.Tensor) -> float:
        return float(((estimate - videos.double()).pow(2).mean(dim=(2, 3)) * found.moving).sum())

    assert error(found.exact) < 0.98 * min(
        error(found.exact * 0.9), error(found.exact * 1.1), error(found.alone)
    )
    assert found.errors(found.exact.float()).max() < 1e-12
    assert np.median(found.errors(found.alone)) > 0.05
    # The precision form of the conditional mean, in place of the covariance form.
    schedule, precision = NoiseSchedule.sqrt_linear(), ar2_covariance(FRAMES, *PROCESS)
    for clip in (0, 1, 2):
        signal, sigma = schedule.signal(found.t[clip]), schedule.sigma(found.t[clip])
        for frame in (0, 3, 15):
            seen = slice(0, frame + 1)
            inverse = torch.linalg.inv(precision[seen, seen]) + torch.diag(
                signal[seen] ** 2 / sigma[seen] ** 2
            )
            told = (signal / sigma**2)[seen, None] * found.noisy[clip, seen, 0].double()
            mean = torch.linalg.solve(inverse, told)[frame]
            torch.testing.assert_close(found.exact[clip, frame, 0], mean, rtol=1e-4, atol=1e-5)


def test_networks_are_trained_once_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rules", "fopp", "iid", "--seeds", "0", "1", "--lags", "0", "50", "--clips", "16"]
    assert trained_gaussian.main([*options, "--steps", "2", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| fopp less iid |" in out and "| each frame alone |" in out and "[" in out
    values = json.loads((tmp_path / "trained_gaussian.json").read_text())
    assert np.array(values["errors"]["iid"]["50"]).shape == (2, 16)
    before = (tmp_path / "fopp-1" / "transformer" / "model.safetensors").read_bytes()
    assert trained_gaussian.main([*options, "--steps", "2", "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "trained_gaussian.json").read_text()) == values
    assert (tmp_path / "fopp-1" / "transformer" / "model.safetensors").read_bytes() == before


def test_differences_are_paired() -> None:
    clips = np.random.default_rng(0).normal(1, 1, (3, 50))
    found = Comparison(1, {"a": {0: clips + 0.1}, "b": {0: clips}}, {0: clips[0]})
    assert found.difference("a", "b", 0).low == pytest.approx(0.1)
    tables = list(found.tables())
    assert [len(table.rows) for table in tables] == [3, 1] and "+0.1000" in tables[1].markdown()
