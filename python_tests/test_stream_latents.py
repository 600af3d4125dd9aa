# SPDX-License-Identifier: Apache-2.0
"""StreamLatents is a dictionary of frames, whatever part of it lies in one tensor."""

from __future__ import annotations

import random

import pytest
import torch
from effort import seeds

from ardiff_engine.engine.stream_latents import StreamLatents


def latent(value: float) -> torch.Tensor:
    return torch.full((2, 3), value)


@pytest.mark.parametrize("seed", seeds(30))
def test_any_calls_leave_what_a_dictionary_would_have(seed: int) -> None:
    chance, latents, expected = random.Random(seed), StreamLatents(), {}
    for step in range(60):
        frame = chance.randrange(8)
        match chance.randrange(4):
            case 0:
                latents[frame] = latent(step)
                expected[frame] = step
            case 1:
                frames = tuple(sorted(chance.sample(range(8), chance.randrange(1, 5))))
                latents.rows = latents.after(frames, torch.stack([latent(step + f / 10) for f in frames]))
                expected |= {f: step + f / 10 for f in frames}
            case 2 if frame in expected:
                del latents[frame]
                del expected[frame]
            case 3:
                with pytest.raises(KeyError):
                    latents[99]
        assert sorted(latents) == sorted(expected) and len(latents) == len(expected)
        assert all(f in latents and torch.equal(latents[f], latent(value)) for f, value in expected.items())
        some = tuple(chance.sample(sorted(expected), min(len(expected), 3)))
        if some:
            assert torch.equal(
                torch.cat(latents.runs(some)), torch.stack([latent(expected[f]) for f in some])
            )
    latents.clear()
    assert not latents


def test_what_a_pass_moved_is_not_copied() -> None:
    latents, block = StreamLatents(), torch.randn(3, 2, 3)
    latents.rows = latents.after((4, 5, 6), block)
    (whole,) = latents.runs((4, 5, 6))
    assert whole is block and latents[5].data_ptr() == block[1].data_ptr()
    latents[7] = latent(0.5)
    (rows, single) = latents.runs((5, 6, 7))
    assert rows.data_ptr() == block[1].data_ptr() and rows.shape == (2, 2, 3) and single.shape == (1, 2, 3)
    latents[5] = latent(0.25)
    assert [len(run) for run in latents.runs((4, 5, 6, 7))] == [1, 1, 1, 1] and latents.runs(()) == []
