# SPDX-License-Identifier: Apache-2.0
"""Streams join and leave one batch at every tick, and none of them can tell."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from effort import seeds
from inside import inside
from test_ar_diffusion import tiny
from test_engine import SCHEDULE, engine_for

from ardiff_engine import plan
from ardiff_engine.diffusion import solvers
from ardiff_engine.engine import Engine, Request, layout
from ardiff_engine.engine.layout import Layout
from ardiff_engine.errors import ConfigError, OutOfPagesError
from ardiff_engine.memory import Full, RecomputedWindow, Window
from ardiff_engine.models.dit.row_linear import RowLinear

PREFIX = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(7))
SIX_STEPS = solvers.DDIM(SCHEDULE, num_inference_steps=6, eta=0.5)
KINDS = [
    {"num_frames": 5, "lag": 1},
    {"num_frames": 6, "lag": 4, "seed": 1},
    {"num_frames": 3, "lag": 0, "guidance_scale": 2.0},
    {"num_frames": 7, "lag": 2, "prefix": PREFIX},
    {"num_frames": 4, "lag": 3, "condition": torch.ones(5, 12), "guidance_scale": 0.5},
    {"num_frames": 5, "lag": 2, "solver": SIX_STEPS},
    {"num_frames": 5, "lag": 4, "memory": Window(2, sink=1), "seed": 4},
    {"num_frames": 6, "lag": 2, "memory": Full(), "noise_stream": 3},
]


@pytest.fixture(scope="module")
def alone() -> list[torch.Tensor]:
    return [engine_for().submit(Request(**kind)).result() for kind in KINDS]


@pytest.mark.parametrize("seed", seeds(100))
def test_alone_and_batched_are_the_same_to_the_bit(alone, seed):
    """Random mixes, joining at random ticks, with and without a token budget, some cancelled on the way."""
    chance = random.Random(seed)
    engine = engine_for(max_pages=400, max_batch_tokens=chance.choice([None, 8, 20, 40]))
    streams = []
    for _ in range(chance.randint(2, 6)):
        kind = chance.randrange(len(KINDS))
        streams.append((kind, engine.submit(Request(**KINDS[kind]))))
        for _ in range(chance.randint(0, 6)):
            engine.step(1)
        if chance.random() < 0.15:
            streams.pop(chance.randrange(len(streams)))[1].cancel()
    chance.shuffle(streams)
    for kind, stream in streams:
        assert torch.equal(stream.result(), alone[kind]), KINDS[kind]
    stats = engine.stats()
    assert stats.pages_held == stats.pages_promised == 0 and stats.exact and not stats.passes_retried


def test_streams_take_turns_within_the_token_budget():
    engine = engine_for(max_pages=400, max_batch_tokens=2 * (3 + 5))
    seen = []
    forward = engine.model.forward

    def counting(x, batch, *rest):
        seen.append(len(x) + batch.num_contexts * 5)
        return forward(x, batch, *rest)

    engine.model.forward = counting
    small = [engine.submit(Request(num_frames=4, lag=4, seed=i)) for i in range(5)]
    large = engine.submit(Request(num_frames=4, lag=0, seed=9))
    while not all(stream.done for stream in (*small, large)):
        engine.step(1)
        done = [stream.ticks_done for stream in small if not stream.done]
        assert not done or max(done) - min(done) <= 2, "one stream waits longer than its share"
        assert large.done or large.ticks_done >= 1 or engine.stats().passes < 8, "the large one starves"
    # The large one, 12 tokens and its context, fits beside nobody in its first pass.
    assert max(seen) <= 2 * (3 + 5) + 1
    for i, stream in enumerate(small):
        assert torch.equal(
            stream.result(), engine_for().submit(Request(num_frames=4, lag=4, seed=i)).result()
        )


def test_videos_wait_for_pages_in_order_and_up_to_a_bound():
    model = tiny("separate_norm", "temporal_causal", "rope")
    solver = solvers.DDIM(SCHEDULE, num_inference_steps=4)
    engine = Engine(model, solver=solver, memory=RecomputedWindow(4), max_pages=11, max_waiting=2)
    streams = [engine.submit(Request(num_frames=6, lag=2, seed=i)) for i in range(4)]
    assert [stream.state for stream in streams] == ["running", "running", "waiting", "waiting"]
    with pytest.raises(OutOfPagesError, match="can need 5 pages.*11 in total.*fewer than 2"):
        engine.submit(Request(num_frames=6, lag=2))
    with pytest.raises(OutOfPagesError, match="can need 12 pages.*at most 11"):
        engine.submit(Request(num_frames=11, lag=2, memory=Full()))
    # Nobody overtakes: this one would fit, but two are before it.
    streams[2].cancel()
    late = engine.submit(Request(num_frames=1, lag=4))
    assert late.state == "waiting"
    results = [stream.result() for stream in (streams[3], late, streams[0], streams[1])]
    expected = engine_for().submit(Request(num_frames=6, lag=2, seed=3)).result()
    assert torch.equal(results[0], expected)
    assert engine.stats().pages_held == 0 and engine.stats().streams_waiting == 0


def test_dropping_the_last_reference_is_cancelling():
    engine = engine_for(max_pages=12)
    stream = engine.submit(Request(num_frames=6, lag=2))
    engine.step(1)
    assert engine.stats().pages_held > 0
    del stream
    gc.collect()
    stats = engine.stats()
    assert stats.pages_held == stats.pages_promised == 0 and stats.streams_cancelled == 1
    assert not engine.step()
    for frame in engine.submit(Request(num_frames=6, lag=2)):
        if frame.index == 2:
            break
    assert engine.stats().pages_held == 0


def test_a_stream_with_a_callback_needs_no_reference():
    ticks = []
    engine = engine_for()
    engine.submit(Request(num_frames=3, lag=2, on_step=lambda stream: ticks.append(stream.ticks_done)))
    gc.collect()
    while engine.step():
        pass
    assert ticks == list(range(1, 9)) and engine.stats().streams_finished == 1
    gc.collect()
    assert not engine._scheduler.streams and not engine._kept


def test_solvers_of_several_clamps_share_a_pass():
    clamps = (None, 1.0, 0.25)
    requests = [
        Request(num_frames=2, lag=1, solver=solvers.DDIM(SCHEDULE, num_inference_steps=4, clamp=clamp))
        for clamp in clamps
    ]
    engine = engine_for()
    streams = [engine.submit(request) for request in requests]
    together = [stream.result() for stream in streams]
    alone = [engine_for().submit(request).result() for request in requests]
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    # The last step keeps a trace of noise: ᾱ_0 < 1.
    assert together[2].abs().max() <= 0.3 < together[1].abs().max() <= 1.05


def test_a_solver_is_no_number():
    with pytest.raises(ConfigError, match="solver"):
        Request(solver=50)


def test_tables_of_solvers_that_nobody_uses_are_dropped():
    engine = engine_for()
    rows = [
        engine.submit(
            Request(num_frames=2, lag=1, solver=solvers.DDIM(SCHEDULE, num_inference_steps=steps))
        ).result()
        is not None
        and engine._schedules.coefficients.shape[0]
        for steps in (6, 7, 8, 9)
    ]
    assert rows == [1 + 4 + 6, 1 + 4 + 7, 1 + 4 + 8, 1 + 4 + 9]


def test_steady_ticks_use_their_layout_again(monkeypatch):
    engine = engine_for(memory=Window(3))
    made = []
    monkeypatch.setattr(layout, "Layout", lambda **given: made.append(1) or Layout(**given))
    streams = [engine.submit(Request(num_frames=6, lag=4, seed=i)) for i in range(3)]
    for stream in streams:
        stream.result()
    # Per frame: one with the commit of the frame before, one for the other three ticks.
    assert engine.stats().passes == 24 and len(made) <= 12


def test_windows_that_slide_use_their_pages_and_so_their_layouts_in_turns(monkeypatch):
    engine, made = engine_for(memory=Window(4)), []
    monkeypatch.setattr(layout, "Layout", lambda **given: made.append(1) or Layout(**given))
    streams = [engine.submit(Request(num_frames=None, plan=plan.blocks(2), seed=i)) for i in range(3)]
    counts = []
    for passes in (40, 40):
        for _ in range(passes):
            engine.step(1)
            for stream in streams:
                stream.take_ready()
        counts.append((len(made), {tuple(sorted(inside(own).pages.ids)) for own in streams}))
    assert counts[0] == counts[1]


def test_frames_that_only_store_their_keys_are_not_computed_to_the_end(monkeypatch):
    engine = engine_for(memory=Window(3))
    wanted: list[tuple[int, int]] = []
    forward = engine.model.forward

    def watched(x, batch, *rest):
        tokens = engine.model.spec.tokens()
        count = len(x) if batch.wanted is None else int(batch.wanted.sum())
        wanted.append((count // tokens, len(x) // tokens))
        return forward(x, batch, *rest)

    monkeypatch.setattr(engine.model, "forward", watched)
    engine.submit(Request(num_frames=3, lag=4)).result()
    # The first pass feeds the context too; passes 4 and 8 store the frame before.
    assert wanted == [(1, 1)] * 4 + [(1, 2)] + [(1, 1)] * 3 + [(1, 2)] + [(1, 1)] * 3


def test_the_memory_plan_is_what_is_then_allocated():
    model = tiny("separate_norm", "temporal_causal", "rope")
    solver, memory = solvers.DDIM(SCHEDULE, num_inference_steps=4), RecomputedWindow(4)
    request = Request(num_frames=None, lag=2, guidance_scale=2.0)
    plan = Engine.memory_plan(model, solver=solver, memory=memory, request=request, streams=3)
    engine = Engine(model, solver=solver, memory=memory, max_pages=plan.pages)
    streams = [engine.submit(request) for _ in range(3)]
    with pytest.raises(OutOfPagesError):
        engine.submit(Request(num_frames=1, lag=0))
    assert plan.pages_bytes == 2 * engine.pool.k.nbytes
    layers = [module for module in model.modules() if isinstance(module, RowLinear)]
    packed = sum(layer.packed().panels.nbytes for layer in layers)
    assert plan.weights_bytes == packed + sum(p.nbytes for p in model.parameters())
    assert plan.tables_bytes == engine._schedules.tables.parts[0].nbytes
    assert "3 streams x 10 pages" in str(plan) and plan.total_bytes > plan.pages_bytes
    del streams


def test_a_share_of_the_memory_as_max_pages():
    model = tiny("separate_norm", "temporal_causal", "rope")
    engine = Engine(model, solver=solvers.DDIM(SCHEDULE, num_inference_steps=4), max_pages=1e-4)
    assert 1 <= engine.stats().pages_total < 1_000_000
    for share in (0.0, 1.0, 1.5, -0.1):
        with pytest.raises(ConfigError, match="share"):
            Engine(model, solver=solvers.DDIM(SCHEDULE, num_inference_steps=4), max_pages=share)
