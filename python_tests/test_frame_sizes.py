# SPDX-License-Identifier: Apache-2.0
"""Streams whose frames have different sizes share passes, and each gives what it gives alone, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.small_wan import prompt, small_wan

import ardiff_engine as ade
from ardiff_engine.diffusion.noise import initial_noise
from ardiff_engine.engine.cuda import graphs
from ardiff_engine.errors import ArdiffError, ConfigError, OutOfPagesError, TensorError
from ardiff_engine.memory import Full, RecomputedWindow, Window
from ardiff_engine.models.wan import WanTransformer
from ardiff_engine.plan import blocks

STEPS, FLOW = 3, ade.FlowSchedule(shift=3.0)
SIZES = ((4, 6), (8, 2), (6, 4), (2, 2), (6, 10))


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    return small_wan()


def engine_of(model: WanTransformer, **options: Any) -> ade.Engine:
    options = {"memory": Window(3), "max_pages": 300, "page_rows": 16} | options
    return ade.Engine(model, solver=ade.solvers.Renoise(FLOW, [1000, 600, 200]), **options)


def requests() -> list[ade.Request]:
    """(4, 6) and (6, 4) have as many tokens; the last ones feed more than one branch."""
    own = [
        {"lag": 1},
        {"plan": blocks(2)},
        {"lag": STEPS, "memory": Full()},
        {"lag": 0, "num_frames": 3, "guidance_scale": 2.0},
        {"lag": 2, "guidance_scale": 1.5, "memory": RecomputedWindow(3)},
    ]
    return [
        ade.Request(**({"num_frames": 4, "seed": i, "condition": prompt(i % 3), "size": size} | options))
        for i, (size, options) in enumerate(zip(SIZES, own, strict=True))
    ]


@pytest.mark.parametrize("padded", [False, True])
def test_alone_and_together_are_the_same_bits(model: WanTransformer, padded: bool) -> None:
    alone = [engine_of(model).submit(request).result() for request in requests()]
    assert [video.shape[1:] for video in alone] == [(3, *size) for size in SIZES]
    engine = engine_of(model, cuda_graphs=padded)
    streams = []
    for request in requests():
        streams.append(engine.submit(request))
        engine.step(1)
    assert all(torch.equal(s.result(), one) for s, one in zip(streams, alone, strict=True))
    assert engine.stats().pages_held == 0


def test_passes_that_follow_each_other(model: WanTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight at a time: all branches of what moves find their next inputs, whatever their sizes."""
    spans: list[tuple[int, ...]] = []
    run = graphs.PassGraphs.run
    monkeypatch.setattr(
        graphs.PassGraphs,
        "run",
        lambda self, batch: spans.append(tuple(span.tokens for span in batch.spans)) or run(self, batch),
    )
    one_by_one, at_once = (engine_of(model) for _ in range(2))
    for engine, passes in ((one_by_one, 1), (at_once, 8)):
        streams = [engine.submit(request) for request in requests()[:4]]
        while engine.step(passes):
            pass
        videos = [stream.result() for stream in streams]
        if engine is one_by_one:
            expected = videos
    assert all(torch.equal(a, b) for a, b in zip(videos, expected, strict=True))
    # Frames of as many tokens stand together.
    assert (1, 4, 6) in spans and all(list(seen) == sorted(set(seen)) for seen in spans)


def edited(engine: ade.Engine, requests: list[ade.Request]) -> list[torch.Tensor]:
    """Forks, pauses, a way back and more frames, of all streams at the same ticks."""
    streams = [engine.submit(request) for request in requests]
    for _ in range(4):
        engine.step(1)
    streams += [stream.fork(seed=7) for stream in streams]
    engine.step(1)
    for stream in streams[::2]:
        stream.suspend()
        stream.resume()
    engine.step(1)
    for stream in streams:
        stream.rollback(1)
        stream.extend(1)
    return [stream.result() for stream in streams]


def test_edits_keep_to_the_size_of_their_stream(model: WanTransformer) -> None:
    requests = [ade.Request(num_frames=5, lag=1, size=size, seed=3) for size in SIZES[:3]]
    together = edited(engine_of(model), requests)
    for number, request in enumerate(requests):
        stream, fork = edited(engine_of(model), [request])
        assert torch.equal(together[number], stream) and torch.equal(together[number + 3], fork)
        assert stream.shape == (6, 3, *request.size)


def test_latents_are_in_the_layout_of_the_model(model: WanTransformer) -> None:
    """Given ones, noise of a seed and of a generator, frames as they come, looks from callbacks."""
    size, shape = (4, 6), (3, 4, 6)
    looks: list[torch.Tensor] = []
    options: dict[str, Any] = {"num_frames": 4, "size": size, "condition": prompt(1), "seed": 9}
    plain = engine_of(model).submit(ade.Request(**options)).result()
    noise = initial_noise(9, 0, range(4), shape)
    assert torch.equal(engine_of(model).submit(ade.Request(**options, latents=noise)).result(), plain)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([torch.randn(shape, generator=generator) for _ in range(4)])
    by_generator = ade.Request(**options, generator=torch.Generator().manual_seed(1))
    given = ade.Request(**options, latents=drawn, on_step=lambda s: looks.extend(s.latents.values()))
    video = engine_of(model).submit(given).result()
    assert torch.equal(engine_of(model).submit(by_generator).result(), video)
    assert looks and all(look.shape == shape for look in looks)

    continued = ade.Request(**options, prefix=video[:2])
    stream = engine_of(model).submit(continued)
    whole = stream.result()
    assert torch.equal(whole[:2], video[:2]) and whole.shape == video.shape
    frames = list(engine_of(model).submit(continued))
    assert [frame.index for frame in frames] == [2, 3]
    assert torch.equal(torch.stack([frame.latent for frame in frames]), whole[2:])


def test_a_frame_takes_whole_pages(model: WanTransformer) -> None:
    solver = ade.solvers.Euler(FLOW, STEPS)
    for size, pages in (((2, 2), 1), ((8, 8), 1), ((8, 10), 2), ((16, 16), 4)):
        request = ade.Request(num_frames=3, size=size, lag=STEPS)
        plan = ade.Engine.memory_plan(model, solver=solver, memory=Full(), request=request, page_rows=16)
        assert plan.pages_per_stream == 3 * pages + 2  # of the prompt
        engine = engine_of(model, memory=Full(), max_pages=plan.pages)
        engine.submit(request).result()
        with pytest.raises(OutOfPagesError):
            engine_of(model, memory=Full(), max_pages=plan.pages - 1).submit(request)
    # Without a word, pages for the size that the network was trained on: 60 x 104 latents are 1560 tokens.
    assert model.spec.tokens() == 1560 and ade.Engine(model, solver=solver, max_pages=2).pool.page_rows == 112


def test_the_engine_has_a_plan_for_requests_without_one(model: WanTransformer) -> None:
    engine = engine_of(model, plan=blocks(2))
    ticks = [
        engine.submit(ade.Request(num_frames=4, size=(2, 2), **own)).num_ticks
        for own in ({}, {"lag": 3}, {"plan": blocks(1)}, {"lag": 1})
    ]
    assert ticks == [2 * STEPS, 4 * STEPS, 4 * STEPS, 3 + STEPS]
    for wrong in (3, blocks):
        with pytest.raises(ConfigError, match="plan"):
            engine_of(model, plan=wrong)


@pytest.mark.parametrize(
    "options, error, noun",
    [
        ({"size": (4, 5)}, ConfigError, "size"),
        ({"size": (3, 6)}, ConfigError, "size"),
        ({"size": (0, 6)}, ConfigError, "size"),
        ({"size": (-2, 6)}, ConfigError, "size"),
        ({"size": 4}, ConfigError, "size"),
        ({"size": (4, 6, 2)}, ConfigError, "size"),
        ({"size": (4.0, 6.5)}, ConfigError, "size"),
        ({"size": (4, 6), "latents": torch.zeros(4, 6, 12)}, TensorError, "latents"),
        ({"size": (4, 6), "latents": torch.zeros(4, 3, 6, 4)}, TensorError, "latents"),
        ({"size": (4, 6), "prefix": torch.zeros(1, 4, 4, 6)}, TensorError, "prefix"),
        ({"latents": torch.zeros(4, 3, 4, 6)}, TensorError, "latents"),  # of the trained size otherwise
    ],
)
def test_a_wrong_size_takes_nothing(
    model: WanTransformer, options: dict[str, Any], error: type[ArdiffError], noun: str
) -> None:
    engine = engine_of(model)
    with pytest.raises(error, match=noun):
        engine.submit(ade.Request(num_frames=4, **options))
    assert engine.stats().pages_promised == 0


def test_pages_that_no_kernel_takes(model: WanTransformer) -> None:
    for rows in (0, 17, 1024, "many"):
        with pytest.raises(ConfigError, match="page_rows"):
            engine_of(model, page_rows=rows)
