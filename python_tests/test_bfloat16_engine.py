# SPDX-License-Identifier: Apache-2.0
"""A bfloat16 network in an engine whose latents are float32.

Limits: after 4 steps latents within 2 % (relative L2) of those of the same weights in float32, which is some
five roundings of bfloat16 (2^-8) through 3 layers; alone and batched within 1 %, as PyTorch's bfloat16 linear
layers do not promise that a row depends on itself alone.
"""

from __future__ import annotations

import pytest
import torch
from inside import inside
from test_ar_diffusion import tiny
from test_engine import SCHEDULE

import ardiff_engine as ade
from ardiff_engine import ops
from ardiff_engine.diffusion import solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import RecomputedWindow

TO_FLOAT32, TO_BATCHED = 2e-2, 1e-2


def engine_for(model, cuda_graphs: bool | None = None) -> Engine:
    solver = solvers.DDIM(SCHEDULE, num_inference_steps=4, eta=0.5)
    return Engine(model, solver=solver, memory=RecomputedWindow(4), max_pages=60, cuda_graphs=cuda_graphs)


def model_of(*names: str):
    """bfloat16, and the same weights in float32."""
    half = tiny(*names).bfloat16()
    wide = tiny(*names)
    wide.load_state_dict(half.state_dict())
    return half, wide


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("positions", ["rope", "absolute"])
def test_latents_are_near_those_of_float32(positions):
    half, wide = model_of("share_norm", "temporal_causal", positions)
    request = Request(num_frames=4, lag=2, seed=3, guidance_scale=2.0)
    got, expected = (engine_for(model).submit(request).result() for model in (half, wide))
    assert got.dtype == torch.float32
    assert 0 < distance(got, expected) < TO_FLOAT32


def test_alone_and_batched_and_padded_agree():
    half, _ = model_of("separate_norm", "temporal_causal", "rope")
    requests = [Request(num_frames=3, lag=2, seed=seed) for seed in range(3)]
    alone = [engine_for(half).submit(request).result() for request in requests]
    for cuda_graphs in (None, True):
        engine = engine_for(half, cuda_graphs)
        streams = [engine.submit(request) for request in requests]
        for stream, expected in zip(streams, alone, strict=True):
            assert distance(stream.result(), expected) < TO_BATCHED


def test_weights_pages_and_modulation_are_bfloat16_and_the_rest_float32(monkeypatch):
    half, _ = model_of("separate_norm", "temporal_causal", "rope")
    engine = engine_for(half)
    assert engine.pool.k.dtype == engine.pool.v.dtype == torch.bfloat16
    assert engine._schedules.tables.parts[0].dtype == torch.bfloat16
    assert engine._schedules.coefficients.dtype == torch.float32
    step, seen = ops.solver_step, []

    def watched(x, outs, weights, coefficients, **options):
        seen.append({x.dtype, outs.dtype, weights.dtype, coefficients.dtype})
        return step(x, outs, weights, coefficients, **options)

    monkeypatch.setattr(ops, "solver_step", watched)
    stream = engine.submit(Request(num_frames=2, lag=1, guidance_scale=1.5))
    engine.step(1)
    assert all(latent.dtype == torch.float32 for latent in inside(stream).latents.values())
    assert stream.result().dtype == torch.float32 and all(dtypes == {torch.float32} for dtypes in seen)


def test_pipeline_from_a_folder(tiny_model):
    """End to end; the autoencoder stays float32."""
    options = {"num_frames": 3, "num_inference_steps": 4, "lag": 2, "seed": 1, "progress": False}
    half = ade.Pipeline.from_pretrained(tiny_model, dtype=torch.bfloat16)
    out, expected = half(**options), ade.Pipeline.from_pretrained(tiny_model)(**options)
    assert half.transformer.x_embedder.weight.dtype == torch.bfloat16
    assert {p.dtype for p in half.vae.parameters()} == {torch.float32}
    assert out.frames.dtype == torch.uint8 and out.latents.dtype == torch.float32
    assert 0 < distance(out.latents, expected.latents) < TO_FLOAT32
    frame = next(half.stream(num_inference_steps=4, lag=2, seed=1, video=out.frames[0]))
    assert frame.latent.dtype == torch.float32 and bool(torch.isfinite(frame.latent).all())


def test_memory_plan_counts_two_bytes():
    half, wide = model_of("separate_norm", "temporal_causal", "rope")
    solver = solvers.DDIM(SCHEDULE, num_inference_steps=4)
    small, large = (
        Engine.memory_plan(model, solver=solver, memory=RecomputedWindow(4), request=Request(lag=2))
        for model in (half, wide)
    )
    assert 2 * small.bytes_per_page == large.bytes_per_page
    assert 2 * small.weights_bytes <= large.weights_bytes
