# SPDX-License-Identifier: Apache-2.0
"""Noise keys and the initial noise of a stream."""

from __future__ import annotations

import pytest
import torch

from ardiff_engine.diffusion import initial_noise, noise_keys
from ardiff_engine.errors import TensorError
from ardiff_engine.purposes import Purpose


def test_purposes_are_distinct_and_fixed() -> None:
    assert [
        Purpose.INITIAL,
        Purpose.STEP,
        Purpose.TRAIN,
        Purpose.RENOISE,
        Purpose.DATA,
        Purpose.TIMESTEPS,
    ] == [0, 1, 2, 3, 4, 5]


def test_single_numbers_are_repeated() -> None:
    keys = noise_keys(7, [1, 2, 3], torch.tensor([4, 5, 6]), Purpose.STEP, 9)
    assert keys.dtype == torch.int64
    assert keys.tolist() == [[7, 1, 4, 1, 9], [7, 2, 5, 1, 9], [7, 3, 6, 1, 9]]
    assert noise_keys(1, 2, 3, 4, 5).tolist() == [[1, 2, 3, 4, 5]]
    assert noise_keys(1, [], [], 4, 5).shape == (0, 5)


def test_seeds_use_all_64_bits() -> None:
    seeds = [0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1]
    assert noise_keys(seeds, 0, 0, 0, 0)[:, 0].tolist() == [0, (1 << 63) - 1, -(1 << 63), -1, -1]


@pytest.mark.parametrize(
    "arguments",
    [
        (1 << 64, 0, 0, 0, 0),
        (-(1 << 63) - 1, 0, 0, 0, 0),
        (0, -1, 0, 0, 0),
        (0, 1 << 32, 0, 0, 0),
        (0, 0, 1 << 32, 0, 0),
        (0, 0, 0, 256, 0),
        (0, 0, 0, 0, 1 << 24),
        (0, [1, 2], [1, 2, 3], 0, 0),
        (0, torch.tensor([0.5]), 0, 0, 0),
        (0, torch.zeros(2, 2, dtype=torch.int64), 0, 0, 0),
    ],
)
def test_keys_that_would_collide_or_not_fit_are_refused(arguments: tuple) -> None:
    with pytest.raises(TensorError):
        noise_keys(*arguments)


def test_initial_noise_of_a_frame_does_not_depend_on_the_others() -> None:
    whole = initial_noise(3, 1, range(6), (5, 4))
    assert whole.shape == (6, 5, 4)
    assert whole.dtype == torch.float32
    for frames in ([4], [5, 0, 4], torch.tensor([2, 1])):
        assert torch.equal(initial_noise(3, 1, frames, (5, 4)), whole[torch.as_tensor(frames)])


def test_initial_noise_depends_on_seed_stream_and_frame() -> None:
    base = initial_noise(3, 1, [0, 1], (64,))
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base, initial_noise(4, 1, [0, 1], (64,)))
    assert not torch.equal(base, initial_noise(3 + (1 << 32), 1, [0, 1], (64,)))
    assert not torch.equal(base, initial_noise(3, 2, [0, 1], (64,)))


def test_initial_noise_is_standard_normal_and_white() -> None:
    values = initial_noise(0, 0, range(256), (256,)).double()
    count = values.numel()
    assert abs(values.mean().item()) < 5 / count**0.5
    assert abs(values.var().item() - 1) < 5 * (2 / count) ** 0.5
    assert abs((values**4).mean().item() - 3) < 5 * (96 / count) ** 0.5
    assert abs((values[1:] * values[:-1]).mean().item()) < 5 / count**0.5
    assert abs((values[:, 1:] * values[:, :-1]).mean().item()) < 5 / count**0.5
