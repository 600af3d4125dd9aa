# SPDX-License-Identifier: Apache-2.0
"""Paged == dense == full recompute, at every tick: the engine against the plain algorithm that each policy
names.
"""

from __future__ import annotations

import pytest
import torch
from dense_oracle import plain_ticks
from effort import mixed
from test_ar_diffusion import tiny

from ardiff_engine.diffusion import NoiseSchedule, solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import Full, RecomputedWindow, Window

SCHEDULE = NoiseSchedule.sqrt_linear(1e-4, 2e-2, 1000)
CAUSAL = [("separate_norm", "rope"), ("share_norm", "rope"), ("share_norm", "absolute")]
# Shorter than the window of 4 frames, as long, and longer; with lag 0 a longer video would leave the window
# unfinished.
LENGTHS = [(frames, lag) for frames in (3, 4, 9) for lag in (0, 1, 3, 4) if frames <= 4 or lag > 0]
LEAKY = [
    ("share_norm", "video_temporal_causal", "absolute"),
    ("separate_norm", "video_temporal_causal", "rope"),
    ("share_norm", "none", "rope"),
    ("reproduce", "temporal_causal", "absolute"),
    ("reproduce", "none", "rope"),
    ("sharenorm_shift_first_t", "temporal_causal", "rope"),
    ("sharenorm_shift_first_t", "video_temporal_causal", "absolute"),
]


def compare(model, policy, *, frames, steps, lag, guidance=1.0, prefix_frames=0, plain: dict, tolerance=1e-5):
    """Run a request tick by tick beside the plain algorithm; every frame that the engine holds must agree."""
    generator = torch.Generator().manual_seed(frames * 100 + lag)
    config = model.config
    cell = (config.tokens_per_frame, config.channels)
    noise = torch.randn(frames - prefix_frames, *cell, generator=generator)
    prefix = torch.randn(prefix_frames, *cell, generator=generator) if prefix_frames else None
    condition = torch.randn(config.context_tokens, config.context_dim, generator=generator)
    solver = solvers.DDIM(SCHEDULE, num_inference_steps=steps)
    seen: list[dict[int, torch.Tensor]] = []
    request = Request(
        num_frames=frames,
        lag=lag,
        condition=condition,
        guidance_scale=guidance,
        latents=noise,
        prefix=prefix,
        on_step=lambda stream: seen.append({f: x.clone() for f, x in stream.latents.items()}),
    )
    engine = Engine(model, solver=solver, memory=policy, max_pages=200)
    result = engine.submit(request).result()
    contexts, weights = [condition.double()], [1.0]
    if guidance != 1:
        contexts, weights = (
            [condition.double(), torch.zeros_like(condition).double()],
            [guidance, 1 - guidance],
        )
    with torch.no_grad():
        expected = list(plain_ticks(model, solver, noise, contexts, weights, lag, prefix=prefix, **plain))
    seen = seen[len(seen) - len(expected) :]
    assert len(seen) == len(expected)
    for tick, (own, plain_x) in enumerate(zip(seen, expected, strict=True)):
        assert own, "nothing held"
        for frame, latent in own.items():
            error = float((latent - plain_x[frame]).norm() / plain_x[frame].norm())
            assert error < tolerance, f"tick {tick}, frame {frame}: relative error {error:.2e}"
    assert float((result - expected[-1]).norm() / expected[-1].norm()) < tolerance
    assert engine.stats().pages_held == 0 and engine.stats().pages_free == engine.stats().pages_total
    return engine.stats()


@pytest.mark.parametrize(("causal", "lag", "guidance"), mixed(CAUSAL, [0, 1, 3, 4], [1.0, 2.0]))
def test_full(causal, lag, guidance):
    merge, positions = causal
    model = tiny(merge, "temporal_causal", positions)
    compare(model, Full(), frames=4, steps=4, lag=lag, guidance=guidance, plain={})


@pytest.mark.parametrize(("causal", "length", "guidance"), mixed(CAUSAL, LENGTHS, [1.0, 2.0]))
def test_recomputed_window(causal, length, guidance):
    (merge, positions), (frames, lag) = causal, length
    model = tiny(merge, "temporal_causal", positions)
    compare(
        model, RecomputedWindow(4), frames=frames, steps=4, lag=lag, guidance=guidance, plain={"window": 4}
    )


@pytest.mark.parametrize(
    ("merge", "length", "sink", "guidance"),
    mixed(["separate_norm", "share_norm"], LENGTHS, [0, 2], [1.0, 1.5]),
)
def test_rolling_window(merge, length, sink, guidance):
    frames, lag = length
    model = tiny(merge, "temporal_causal", "rope")
    compare(
        model,
        Window(4, sink=sink),
        frames=frames,
        steps=4,
        lag=lag,
        guidance=guidance,
        plain={"banded": 4, "sink": sink},
    )


@pytest.mark.parametrize(("leaky", "frames", "lag"), mixed(LEAKY, [3, 4, 9], [0, 1, 3, 4]))
def test_masks_that_leak_are_exact_too(leaky, frames, lag):
    frames = frames if (frames, lag) in LENGTHS else 4
    merge, mask, positions = leaky
    model = tiny(merge, mask, positions)
    options = {"frames": frames, "steps": 4, "lag": lag}
    compare(model, RecomputedWindow(4), guidance=2.0 if lag % 2 else 1.0, plain={"window": 4}, **options)
    if frames <= 4:
        compare(model, Full(), guidance=1.0 if lag % 2 else 2.0, plain={}, **options)


@pytest.mark.parametrize("prefix_frames", [1, 3, 7])
@pytest.mark.parametrize("mask", ["temporal_causal", "video_temporal_causal"])
def test_continuation(mask, prefix_frames):
    model = tiny("share_norm", mask, "rope", num_frames=16)
    options = {"frames": prefix_frames + 5, "steps": 4, "lag": 2, "prefix_frames": prefix_frames}
    compare(model, RecomputedWindow(4), plain={"window": 4}, **options)
    compare(model, Full(), plain={}, **options)
    if mask == "temporal_causal":
        compare(model, Window(3, sink=1), plain={"banded": 3, "sink": 1}, **options)


def test_window_of_one_frame():
    model = tiny("separate_norm", "temporal_causal", "rope")
    compare(model, RecomputedWindow(1), frames=4, steps=3, lag=3, plain={"window": 1})
    compare(model, Window(1), frames=4, steps=3, lag=3, plain={"banded": 1})


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 33])
def test_frames_that_do_not_fill_their_pages(tokens):
    model = tiny(
        "separate_norm", "temporal_causal", "rope", tokens_per_frame=tokens, context_tokens=tokens + 1
    )
    compare(model, RecomputedWindow(3), frames=5, steps=3, lag=1, plain={"window": 3})


def test_compaction_feeds_only_cells_that_change_something():
    """16 frames, 50 steps, lag 5: 800 updates and 15 commits, where the official sampler feeds 2000 cells
    (docs/contracts.md).
    """
    model = tiny("separate_norm", "temporal_causal", "rope", num_frames=16)
    engine = Engine(model, solver=solvers.DDIM(SCHEDULE, num_inference_steps=50), memory=Full(), max_pages=40)
    engine.submit(Request(num_frames=16, lag=5)).result()
    stats = engine.stats()
    assert (stats.updates, stats.cells, stats.passes) == (800, 815, 125)
