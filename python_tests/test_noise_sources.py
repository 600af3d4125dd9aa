# SPDX-License-Identifier: Apache-2.0
"""Noise sources: FreeNoise's and Go-with-the-Flow's official numbers, and what every source promises."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ardiff_engine.errors import ArdiffError, ConfigError, NumericalError, TensorError
from ardiff_engine.noise import (
    Antiphase,
    Given,
    Iid,
    Rescheduled,
    Warp,
    Warped,
    blended,
    fusion_weights,
    warp_noise,
)
from ardiff_engine.noise.warp import regaussianized
from ardiff_engine.purposes import Purpose

GOLDEN = Path(__file__).parent / "golden" / "systems"
SHAPE = (2, 4, 6)


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def own(frame: int, purpose: Purpose = Purpose.INITIAL, step: int = 0) -> torch.Tensor:
    seed = hash((frame, int(purpose), step)) % 2**31
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_freenoise_takes_the_official_frames() -> None:
    official = golden("freenoise")
    names = [name for name in official if name.startswith("source_frame")]
    assert names
    for name in names:
        frames, window, stride, seed = map(int, re.findall(r"\d+", name))
        source = Rescheduled(window, stride, seed)
        # Asked for in any order.
        found = {frame: source.source(frame) for frame in (frames - 1, *range(frames))}
        assert [found[frame] for frame in range(frames)] == official[name].tolist()
        if window > 1:
            torch.testing.assert_close(source.initial(window, own), own(source.source(window)))


def test_windows_are_fused_with_the_official_weights() -> None:
    official = golden("freenoise")
    names = [name for name in official if name.startswith("window_weights")]
    assert names
    for name in names:
        assert fusion_weights(int(name.split("_")[-1])) == official[name].tolist()


def test_warped_noise_is_the_official_one() -> None:
    official = {name: torch.as_tensor(value) for name, value in golden("noise_warp").items()}
    state = Warp.start(official["noise0"])
    for flow, fresh, expected in zip(
        official["flow"], official["fresh_noise"], official["state"][1:], strict=True
    ):
        state = warp_noise(state, flow, fresh)
        torch.testing.assert_close(state.weight, expected[2], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state.noise, expected[3:], rtol=1e-6, atol=1e-6)
    for share in (0.0, 0.25, 0.5, 1.0):
        mixed = blended(official["blend_background"], official["blend_foreground"], share)
        torch.testing.assert_close(mixed, official[f"blend_{share:g}"])


def test_copies_become_independent_noise() -> None:
    official = {name: torch.as_tensor(value) for name, value in golden("noise_warp").items()}
    values = official["regauss_in"].flatten(1)
    _, groups = torch.unique(values.T, dim=0, return_inverse=True)
    found, counts = regaussianized(values, groups, official["regauss_fresh"].flatten(1))
    torch.testing.assert_close(found, official["regauss_out"].flatten(1), rtol=1e-6, atol=1e-6)
    assert counts.tolist() == official["regauss_counts"].flatten().tolist()


def test_a_flow_that_stands_still_keeps_the_noise() -> None:
    source = Warped(torch.zeros(3, 2, 4, 6))
    torch.testing.assert_close(source.initial(3, own), own(0))
    # Beyond the flow it is counted, and fresh=1 is nothing but fresh.
    assert source.initial(4, own).equal(own(4))
    torch.testing.assert_close(Warped(torch.ones(3, 2, 4, 6), fresh=1.0).initial(2, own), own(2))


def test_a_flow_of_one_pixel_moves_the_whole_picture() -> None:
    pan = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).repeat(3, 1, 1, 1)
    small, full = Warped(pan), Warped(pan.expand(3, 2, 4, 6))
    small.check(4, SHAPE, 1)
    assert small.initial(3, own).equal(full.initial(3, own))


@pytest.mark.parametrize("source", [Antiphase(1.0), Antiphase(0.3), Warped(torch.ones(7, 2, 4, 6) * 1.7)])
def test_every_frame_alone_is_standard_normal(source) -> None:
    drawn = []
    for video in range(400):
        generator = torch.Generator().manual_seed(video)
        made: dict[tuple, torch.Tensor] = {}

        def counted(
            frame: int, purpose: Purpose = Purpose.INITIAL, step: int = 0, made=made, generator=generator
        ):
            key = (frame, purpose, step)
            if key not in made:
                made[key] = torch.randn(SHAPE, generator=generator)
            return made[key]

        drawn.append(torch.stack([source.initial(frame, counted) for frame in range(5)]))
    noise = torch.stack(drawn).flatten(2)
    assert noise.mean(dim=(0, 2)).abs().max() < 0.05
    assert (noise.var(dim=(0, 2)) - 1).abs().max() < 0.06
    if isinstance(source, Antiphase):
        share = source._strength
        neighbours = (noise[:, 1:] * noise[:, :-1]).mean(dim=(0, 2))
        assert (neighbours + share / (1 + share**2)).abs().max() < 0.05
        assert (noise[:, 2:] * noise[:, :-2]).mean(dim=(0, 2)).abs().max() < 0.05


def test_given_noise_is_copied_and_checked() -> None:
    initial, steps = torch.randn(3, *SHAPE), torch.randn(3, 2, *SHAPE)
    expected = initial.clone()
    source = Given(initial, steps)
    initial.zero_()
    assert source.gives_updates and source.initial(1, own).equal(expected[1])
    assert source.update(2, 1, own).equal(steps[2, 1])
    # An extension's frames are counted.
    assert source.initial(3, own).equal(own(3)) and source.update(3, 0, own).equal(own(3, Purpose.STEP, 0))
    assert not Given(initial).gives_updates and Iid().update(1, 2, own).equal(own(1, Purpose.STEP, 2))
    source.check(3, SHAPE, 2)
    for bad in ((4, SHAPE, 2), (3, SHAPE, 3), (3, (2, 4, 7), 2)):
        with pytest.raises(TensorError, match="shape"):
            source.check(*bad)
    with pytest.raises(ConfigError, match="endless"):
        source.check(None, SHAPE, 2)


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (lambda: Given(torch.zeros(3, 4, dtype=torch.int64)), TensorError),
        (lambda: Given(torch.full((1, 2, 3), torch.nan)), NumericalError),
        (lambda: Rescheduled(4, 5), ConfigError),
        (lambda: Rescheduled(0, 0), ConfigError),
        (lambda: Antiphase(1.5), ConfigError),
        (lambda: Warped(torch.zeros(3, 4, 6)), TensorError),
        (lambda: Warped(torch.zeros(3, 2, 4, 6), fresh=2.0), ConfigError),
        (lambda: Warped(torch.zeros(3, 2, 4, 6)).check(4, (6, 8), 1), TensorError),
    ],
)
def test_bad_sources_are_refused(made, error: type[ArdiffError]) -> None:
    with pytest.raises(error):
        made()
