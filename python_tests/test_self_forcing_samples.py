# SPDX-License-Identifier: Apache-2.0
"""Self-Forcing's whole loop by the engine: the official latents, with the official noise of every step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_wan_transformer import FOLDER, error, official

import ardiff_engine as ade
from ardiff_engine import ops
from ardiff_engine.memory import Full, Placed, Window
from ardiff_engine.plan import blocks

CASES = [
    "sampling_sf_c1",
    "sampling_sf_c3",
    "sampling_sf_independent_1_3_3",
    "rolling_sf_W4_S1_c1",
    "rolling_sf_W6_S1_c3",
    "rolling_longlive_W9_S3_c3",
    "x_rolling_longlive_relative_W9_S3_c3",
    "x_sampling_sf_c3_F21",
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest):
    model, golden, config = official(request.param)
    stored = np.load(FOLDER / f"{request.param}.npz")
    relative = {"relative": "relative" in request.param}
    return model, golden, config | json.loads(str(stored["config"])) | relative


def test_official_latents(case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, golden, config = case
    noise, size = golden["noise"], config["block"]
    first = 1 if config["independent_first_frame"] else size
    shape = tuple(noise.shape[2:])
    steps, frames = golden["denoising_steps"].tolist(), noise.shape[1]
    chunks = [range(first), *(range(f, f + size) for f in range(first, frames, size))]
    chunk_of = {
        frame: (number, frame - chunk.start) for number, chunk in enumerate(chunks) for frame in chunk
    }

    def drawn(key: list[int]) -> torch.Tensor:
        """Of an update: official order is chunk by chunk, one draw after every step but the last."""
        _, clip, frame, _, step = key
        number, inside = chunk_of[frame]
        if step == len(steps) - 1:
            return torch.zeros(model.spec.tokens(shape[1:]), model.spec.channels)
        return model.to_tokens(golden[f"eps_{number * (len(steps) - 1) + step}"][clip, inside])

    solve = ops.solver_step

    def with_official_noise(x: torch.Tensor, outs: torch.Tensor, *given, keys: torch.Tensor, **options):
        eps = torch.stack([drawn(key) for key in keys.tolist()]).reshape(x.shape)
        return solve(x, outs, *given, noise=eps, **options)

    monkeypatch.setattr(ops, "solver_step", with_official_noise)
    solver = ade.solvers.Renoise(ade.FlowSchedule(shift=config["shift"]), steps)
    # The official window counts its sink.
    sink, window = config["sink_size"], config["local_attn_size"]
    memory = Full() if window < 0 else Window(window - sink, sink=sink)
    if config["relative"]:
        memory = Placed(memory, "window")
    rule = blocks(size, first=first)
    engine = ade.Engine(model, solver=solver, memory=memory, plan=rule, max_pages=100)
    streams = [
        engine.submit(
            ade.Request(
                num_frames=frames,
                size=shape[1:],
                condition=golden["text"][clip],
                latents=noise[clip],
                noise_stream=clip,
            )
        )
        for clip in range(len(noise))
    ]
    got = torch.stack([stream.result() for stream in streams])
    assert error(got, golden["latents"]) <= 1e-5


@pytest.mark.parametrize("together", [True, False])
def test_guided_multistep_sampling(together: bool) -> None:
    """Chunk by chunk with a fresh UniPC each, and two caches of clean frames: one for each prompt."""
    model, golden, config = official("cfg_unipc_c3")
    noise, size = golden["noise"], config["block"]
    solver = ade.solvers.UniPC(ade.FlowSchedule(shift=config["shift"]), config["sampling_steps"])
    assert solver.timesteps[: solver.num_steps].tolist() == golden["scheduler_timesteps"].tolist()
    engine = ade.Engine(model, solver=solver, memory=Full(), max_pages=100)
    request = ade.Request(
        num_frames=noise.shape[1],
        plan=blocks(size),
        condition=golden["text"][0],
        negative_condition=golden["text_negative"][0],
        guidance_scale=config["guidance_scale"],
        latents=noise[0],
        size=tuple(noise.shape[3:]),
    )
    streams = [engine.submit(request) for _ in range(2 if together else 1)]
    for stream in streams:
        assert error(stream.result(), golden["latents"][0]) <= 1e-5
