# SPDX-License-Identifier: Apache-2.0
"""The engine runs a network that it knows by the protocol alone, and what comes out is known exactly.

Each pixel of a frame is a video of its own. Given the unit vectors as starting noise, one pixel each, the
pixels of the result are the columns of the linear map from noise to video.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.gaussian_video import GaussianVideo, ar2_covariance, conditional_mean

import ardiff_engine as ade
from ardiff_engine.diffusion.noise_schedule import NoiseSchedule
from ardiff_engine.diffusion.solvers import DDIM
from ardiff_engine.memory import Full, RecomputedWindow

SCHEDULE = NoiseSchedule.sqrt_linear()
SMOOTH, ROUGH = (0.97, 16.0), (0.85, 7.0)
GOLDEN = Path(__file__).parent / "golden" / "gaussian_video.npz"


def engine_of(processes, steps, *, tokens, causal):
    model = GaussianVideo(processes, SCHEDULE, tokens=tokens, causal=causal)
    memory = Full() if causal else RecomputedWindow(16)
    return ade.Engine(model, solver=DDIM(SCHEDULE, steps), memory=memory, max_pages=100)


def map_of(engine, lag, frames, channel=0):
    """[frames, frames]: one token per unit vector."""
    noise = torch.zeros(frames, frames, engine.model.spec.channels)
    noise[range(frames), range(frames)] = 1
    stream = engine.submit(ade.Request(num_frames=frames, lag=lag, latents=noise))
    return stream.result()[:, :, channel].double()


def predicted(covariance, steps, lag, causal):
    """The same by linear algebra: the solver's formula on the maps of all frames at once."""
    frames, solver = len(covariance), DDIM(SCHEDULE, steps)
    alphas = torch.cat(
        [SCHEDULE.alphas_cumprod[solver.timesteps[:steps].long()], SCHEDULE.alphas_cumprod[:1]]
    )
    video = torch.eye(frames, dtype=torch.float64)
    levels = [0] * frames
    for tick in range(steps + lag * (frames - 1)):
        started = [f for f in range(frames) if f * lag <= tick]
        moving = [f for f in started if levels[f] < steps]
        times = torch.tensor(
            [solver.timesteps[levels[f]] if f in started else solver.waiting_timestep for f in range(frames)]
        ).long()
        signal, sigma = SCHEDULE.signal(times), SCHEDULE.sigma(times)
        after = video.clone()
        for f in moving:
            n = f + 1 if causal else frames
            mean = conditional_mean(covariance[:n, :n], signal[:n], sigma[:n])[f] @ video[:n]
            now, then = alphas[levels[f]], alphas[levels[f] + 1]
            noise = (video[f] - now.sqrt() * mean) / (1 - now).sqrt()
            after[f] = then.sqrt() * mean + (1 - then).sqrt() * noise
        video = after
        for f in moving:
            levels[f] += 1
    return video


@pytest.mark.parametrize("causal", [True, False])
def test_every_lag_gives_the_predicted_covariance(causal):
    frames, steps = 9, 6
    engine = engine_of((SMOOTH, ROUGH), steps, tokens=frames, causal=causal)
    for channel, process in enumerate((SMOOTH, ROUGH)):
        for lag in range(steps + 1):
            want = predicted(ar2_covariance(frames, *process), steps, lag, causal)
            got = map_of(engine, lag, frames, channel)
            assert torch.allclose(got, want, rtol=0, atol=1e-5)
            assert torch.allclose(got @ got.T, want @ want.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sight", ["c", "b"])
@pytest.mark.parametrize("steps, lag", [(10, 0), (10, 1), (10, 5), (10, 10), (50, 5), (50, 50)])
def test_maps_computed_elsewhere(sight, steps, lag):
    """Computed once in float64 by another program; see golden/README.md."""
    golden = np.load(GOLDEN)
    assert np.allclose(ar2_covariance(16, *SMOOTH), golden["C"], rtol=0, atol=1e-12)
    engine = engine_of((SMOOTH,), steps, tokens=16, causal=sight == "c")
    got = map_of(engine, lag, 16).numpy()
    assert np.abs(got - golden[f"M_{sight}_S{steps}_lag{lag}_eta0"]).max() < 5e-6


def test_alone_and_together_are_the_same_bits():
    engine = engine_of((SMOOTH, ROUGH), 6, tokens=4, causal=True)
    alone = [engine.submit(ade.Request(num_frames=8, lag=lag, seed=lag)).result() for lag in (0, 2, 6)]
    streams = [engine.submit(ade.Request(num_frames=8, lag=lag, seed=lag)) for lag in (0, 2, 6)]
    assert all(torch.equal(s.result(), one) for s, one in zip(streams, alone, strict=True))
