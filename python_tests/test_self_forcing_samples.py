# SPDX-License-Identifier: Apache-2.0
"""Self-Forcing's whole loop by the engine: the official latents, with the official noise of every step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_wan_transformer import FOLDER, error, official

import ardiff_engine as ade
from ardiff_engine.diffusion.noise import initial_noise
from ardiff_engine.errors import ConfigError, TensorError
from ardiff_engine.memory import Full, Placed, Recached, Window
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


def official_noise(golden: dict[str, torch.Tensor], chunks: list[int]) -> torch.Tensor:
    """[B, F, steps - 1, C, H, W]. Official order: chunk by chunk, one draw after every step but the last."""
    count = len(golden["denoising_steps"]) - 1
    draws = [golden[f"eps_{n}"] for n in range(len(chunks) * count)]
    of_chunks = [torch.stack(draws[n * count :][:count], 2) for n in range(len(chunks))]
    return torch.cat(of_chunks, dim=1)


def test_official_latents(case) -> None:
    model, golden, config = case
    noise, size = golden["noise"], config["block"]
    first = 1 if config["independent_first_frame"] else size
    steps, frames = golden["denoising_steps"].tolist(), noise.shape[1]
    eps = official_noise(golden, [first] + [size] * ((frames - first) // size))
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
                size=tuple(noise.shape[3:]),
                condition=golden["text"][clip],
                noise=ade.noise.Given(noise[clip], eps[clip]),
            )
        )
        for clip in range(len(noise))
    ]
    got = torch.stack([stream.result() for stream in streams])
    assert error(got, golden["latents"]) <= 1e-5


def test_given_noise_follows_its_stream_everywhere() -> None:
    """In a pass with counted streams, through forks, going back and suspension: to the bit as alone."""
    model, golden, config = official("sampling_sf_c3")
    shape, frames = tuple(golden["noise"].shape[2:]), 6
    solver = ade.solvers.Renoise(ade.FlowSchedule(shift=config["shift"]), [1000.0, 750.0, 500.0])
    own = torch.Generator().manual_seed(3)
    initial, eps = (torch.randn(size, generator=own) for size in ((frames, *shape), (frames, 2, *shape)))

    def engine() -> ade.Engine:
        return ade.Engine(model, solver=solver, memory=Full(), plan=blocks(3), max_pages=300)

    def request(**noise) -> ade.Request:
        return ade.Request(num_frames=frames, size=shape[1:], condition=golden["text"][0], seed=5, **noise)

    given = request(noise=ade.noise.Given(initial, eps))
    counted, starts = request(), request(latents=initial)
    alone = [engine().submit(one).result() for one in (given, counted, starts)]
    assert not alone[0].equal(alone[2])
    together = engine()
    streams = [together.submit(one) for one in (given, counted, starts)]
    for _ in range(4):
        together.step()
    fork = streams[0].fork()
    streams[0].suspend()
    together.step()
    streams[0].resume()
    fork.rollback(3)
    for found, expected in zip([*streams, fork], [*alone, alone[0]], strict=True):
        assert found.result().equal(expected)
    with pytest.raises(TensorError, match="steps"):
        engine().submit(request(noise=ade.noise.Given(initial, eps[:, :1])))
    with pytest.raises(ConfigError, match="noise"):
        engine().submit(request(noise=ade.noise.Given(initial), latents=initial))
    with pytest.raises(ConfigError, match="noise"):
        request(noise=ade.noise.Given)


@pytest.mark.parametrize("source", [ade.noise.Rescheduled(3, 1), ade.noise.Antiphase(0.8)])
def test_sources_of_starting_noise(source) -> None:
    model, golden, config = official("sampling_sf_c3")
    shape = tuple(golden["noise"].shape[2:])
    solver = ade.solvers.Euler(ade.FlowSchedule(shift=config["shift"]), 2)
    engine = ade.Engine(model, solver=solver, memory=Full(), plan=blocks(3), max_pages=300)
    asked = {"num_frames": 6, "size": shape[1:], "condition": golden["text"][0], "seed": 5}
    first = engine.submit(ade.Request(**asked, noise=source)).result()
    start = torch.stack(
        [source.initial(f, lambda frame: initial_noise(5, 0, [frame], shape)[0]) for f in range(6)]
    )
    assert engine.submit(ade.Request(**asked, latents=start)).result().equal(first)


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


@pytest.mark.parametrize("sink", ["global", "local"])
@pytest.mark.parametrize("neighbour", [False, True])
def test_a_new_prompt_on_the_way(sink: str, neighbour: bool) -> None:
    """LongLive's switch: from a frame on another prompt, under which the cache is computed again."""
    model, golden, config = official(f"switch_longlive_{sink}_sink")
    noise, size, shape = golden["noise"][0], config["block"], tuple(golden["noise"].shape[3:])
    frames, at = len(noise), int(golden["switches"][0])
    given = ade.noise.Given(noise, official_noise(golden, [size] * (frames // size))[0])
    solver = ade.solvers.Renoise(ade.FlowSchedule(shift=config["shift"]), golden["denoising_steps"].tolist())
    window = Window(config["local_attn_size"] - config["sink_size"], sink=config["sink_size"])
    memory = Recached(window, keeps_sink=config["global_sink"])
    engine = ade.Engine(model, solver=solver, memory=memory, plan=blocks(size), max_pages=100)
    request = ade.Request(num_frames=frames, size=shape, condition=golden["text"][0], noise=given)
    stream = engine.submit(request)
    other = engine.submit(request) if neighbour else None
    read = iter(stream)
    for _ in range(at):
        next(read)
    receipt = stream.set_condition(golden["text_1"][0], effect="recommit")
    first = at - (window.size if config["global_sink"] else memory.reach)
    assert (receipt.first_frame, receipt.recommitted) == (at, tuple(range(first, at)))
    assert error(stream.result(), golden["latents"][0]) <= 1e-5
    if other is not None:
        unchanged = other.result()
        assert torch.equal(unchanged[:at], stream.result()[:at])
        assert error(unchanged[at:], golden["latents"][0, at:]) > 1e-3
