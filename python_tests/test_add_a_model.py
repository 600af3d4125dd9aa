# SPDX-License-Identifier: Apache-2.0
"""docs/add_a_model.md does what it says."""

import re
from pathlib import Path
from typing import Any

import torch

import ardiff_engine as ade
from ardiff_engine.diffusion.noise import initial_noise

DOCUMENT = Path(__file__).parents[1] / "docs" / "add_a_model.md"


def test_the_example_runs_and_averages_what_it_sees():
    example = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(example, str(DOCUMENT), "exec"), names)
    video, solver = names["video"], names["solver"]
    assert video.shape == (6, 4, 16) and bool(torch.isfinite(video).all())

    # The same by hand: x0 of frame f is the weighted mean over all tokens of frames f - 2 .. f.
    x = initial_noise(1, 0, range(6), (4, 16), device=torch.device("cpu")).double()
    alphas = names["schedule"].alphas_cumprod
    ends = torch.cat([alphas[solver.timesteps[:4].long()], alphas[:1]])
    level = [0] * 6
    for tick in range(4 + 2 * 5):
        moving = [f for f in range(6) if 2 * f <= tick and level[f] < 4]
        before = x.clone()
        for f in moving:
            mean = before[max(0, f - 2) : f + 1].flatten(0, 1).mean(0) * (
                1 - solver.timesteps[level[f]] / 1000
            )
            now, then = ends[level[f]], ends[level[f] + 1]
            noise = (before[f] - now.sqrt() * mean) / (1 - now).sqrt()
            x[f] = then.sqrt() * mean + (1 - then).sqrt() * noise
            level[f] += 1
    assert torch.allclose(video.double(), x, rtol=0, atol=1e-4)


def test_it_runs_beside_others_and_ends_like_alone():
    example = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(example, str(DOCUMENT), "exec"), names)
    engine = names["engine"]
    streams = [engine.submit(ade.Request(num_frames=6, lag=2, seed=seed)) for seed in (1, 2, 3)]
    assert torch.equal(streams[0].result(), names["video"])
