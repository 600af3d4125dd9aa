# SPDX-License-Identifier: Apache-2.0
"""A step of several passes gives the same bits as steps of one, whatever happens between them."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from effort import seeds
from inside import inside, poison
from test_ar_diffusion import tiny
from test_engine import SCHEDULE, engine_for

from ardiff_engine import ops
from ardiff_engine.diffusion import solvers
from ardiff_engine.engine import Engine, Request, Stream, layout
from ardiff_engine.engine.layout import Layout
from ardiff_engine.errors import ArdiffError, NumericalError
from ardiff_engine.memory import Full, Placed, RecomputedWindow, Window

STEPS = 12
NOISY = solvers.DDIM(SCHEDULE, num_inference_steps=9, eta=0.5)
KINDS = [
    {"num_frames": 5, "lag": 12},
    {"num_frames": 6, "lag": 5, "seed": 1},
    {"num_frames": 3, "lag": 0, "guidance_scale": 2.0},
    {"num_frames": 4, "lag": 7, "solver": NOISY, "seed": 2},
    {"num_frames": 5, "lag": 4, "memory": Window(3, sink=1), "guidance_scale": 0.0},
    {"num_frames": 5, "lag": 6, "memory": Full(), "max_ahead": 3},
    {"num_frames": 6, "lag": 12, "memory": Placed(Window(2, sink=1), "window"), "guidance_scale": 2.0},
]


def everything(engine: Engine, streams: list[Stream]) -> list[object]:
    """What anybody can see of the streams."""
    seen: list[object] = []
    for stream in streams:
        latents = {} if stream.done else {f: x.clone() for f, x in inside(stream).latents.items()}
        levels = dict(inside(stream).feeder.levels)
        seen += [stream.ticks_done, stream.state, levels, stream.frames_ready, latents]
    stats = engine.stats()
    return [*seen, stats.passes, stats.cells, stats.updates, stats.frames, stats.pages_held]


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return a == b


def story(seed: int, one_by_one: bool) -> tuple[list[list[object]], list[torch.Tensor | None], int]:
    """A random life of an engine: what was seen on the way, the videos, and the most passes of a step."""
    chance = random.Random(seed)
    engine = engine_for(steps=STEPS, max_pages=600, max_batch_tokens=chance.choice([None, None, 1000, 20]))
    streams: list[Stream] = []
    seen: list[list[object]] = []
    most = 0
    for _ in range(25):
        act = chance.randrange(9) if streams else 0
        stream = chance.choice(streams) if streams else None
        try:
            if act == 0 and len(streams) < 6:
                streams.append(engine.submit(Request(**chance.choice(KINDS))))
            elif act == 1 and stream is not None:
                (stream.suspend if chance.random() < 0.5 else stream.resume)()
            elif act == 2 and stream is not None:
                streams.append(stream.fork(seed=7))
            elif act == 3 and stream is not None:
                stream.set_condition(torch.ones(5, 12), effect=chance.choice(["keep", "recommit"]))
            elif act == 4 and stream is not None:
                chance.choice([stream.cancel, stream.take_ready, partial(stream.extend, 2)])()
            elif act == 5 and stream is not None:
                stream.rollback(max(0, inside(stream).feeder.oldest_unfinished - chance.randrange(3)))
            elif act == 6:
                seen.append(everything(engine, streams))
        except ArdiffError:
            pass
        passes = chance.randrange(1, 9)
        while passes > 0:
            before = engine.stats().passes
            if not engine.step(1 if one_by_one else passes):
                break
            done = engine.stats().passes - before
            passes, most = passes - max(1, done), max(most, done)
    for stream in streams:
        stream.resume() if stream.state == "suspended" else None
        stream.take_ready()
    return seen, [None if s.done and s.state != "finished" else s.result() for s in streams], most


@pytest.mark.parametrize("seed", seeds(30))
def test_no_one_can_tell_how_many_passes_a_step_had(seed):
    seen, videos, most = story(seed, one_by_one=False)
    expected, expected_videos, ones = story(seed, one_by_one=True)
    assert ones == 1 and most > 1
    assert all(same(a, b) for a, b in zip(sum(seen, []), sum(expected, []), strict=True))
    assert all(a is b or torch.equal(a, b) for a, b in zip(videos, expected_videos, strict=True))


@pytest.mark.parametrize("merge", ["separate_norm", "reproduce", "sharenorm_shift_first_t"])
@pytest.mark.parametrize("mask", ["temporal_causal", "video_temporal_causal", "none"])
def test_masks_that_feed_waiting_frames_and_contexts(mask, merge):
    def videos(passes: int) -> list[torch.Tensor]:
        engine = engine_for(
            tiny(merge, mask, "absolute"), steps=STEPS, memory=RecomputedWindow(4), max_pages=300
        )
        requests = [
            Request(num_frames=4, lag=lag, seed=lag, guidance_scale=scale)
            for lag, scale in ((5, 1.0), (12, 3.0))
        ]
        streams = [engine.submit(request) for request in requests]
        while engine.step(passes):
            pass
        return [stream.result() for stream in streams]

    assert all(torch.equal(a, b) for a, b in zip(videos(8), videos(1), strict=True))


def three(stored: bool = True, **options) -> tuple[Engine, list[Stream]]:
    """Three streams, after the pass that stores the context or before it; then nothing but levels changes."""
    engine = engine_for(steps=STEPS, memory=Window(3))
    streams = [engine.submit(Request(num_frames=4, lag=12, seed=seed, **options)) for seed in range(3)]
    if stored:
        assert engine.step(1) and engine.stats().passes == 1
    return engine, streams


def ticks(streams: list[Stream]) -> list[int]:
    return [stream.ticks_done for stream in streams]


def test_a_step_ends_with_the_pass_that_finishes_a_frame(monkeypatch):
    engine, streams = three()
    made = []
    monkeypatch.setattr(layout, "Layout", lambda **given: made.append(1) or Layout(**given))
    engine.step()
    assert ticks(streams) == [9, 9, 9]
    before = len(made)
    engine.step()
    assert ticks(streams) == [12, 12, 12] and [stream.frames_ready for stream in streams] == [1, 1, 1]
    assert len(made) == before > 0, "what does not change is laid out once"


def test_a_callback_a_turn_and_a_waiting_reader_are_looked_at_after_every_pass():
    calls: list[int] = []
    engine = engine_for(steps=STEPS)
    engine.submit(
        Request(num_frames=2, lag=12, on_step=lambda stream: calls.append(stream.ticks_done))
    ).result()
    assert calls == list(range(1, 25))
    for options, request in (({"max_batch_tokens": 9}, {}), ({}, {"max_ahead": 1})):
        engine = engine_for(steps=STEPS, memory=Window(3), **options)
        streams = [engine.submit(Request(num_frames=4, lag=12, seed=seed)) for seed in range(2)]
        streams.append(engine.submit(Request(num_frames=3, lag=6, seed=2, **request)))
        while streams[2].frames_ready < 1:
            engine.step()
        before = engine.stats().passes
        assert engine.step() and engine.stats().passes == before + 1


def test_what_is_asked_for_meanwhile_comes_before_the_next_pass(monkeypatch):
    """From within a pass, as another thread or the collector does it."""
    engine, streams = three()
    forward, calls = engine.model.forward, []

    def asking(*arguments):
        calls.append(1)
        if len(calls) == 3:
            streams[1].cancel()
        return forward(*arguments)

    monkeypatch.setattr(engine.model, "forward", asking)
    engine.step()
    assert ticks(streams) == [4, 4, 1] or ticks(streams)[::2] == [4, 4]
    assert streams[1].state == "cancelled" and not inside(streams[1]).pages.held


@pytest.mark.parametrize("at", [1, 2, 5])
def test_one_that_fails_in_a_later_pass_fails_alone_and_at_that_tick(at, monkeypatch):
    engine, streams = three(guidance_scale=2.0)
    expected = [stream.result() for stream in three(guidance_scale=2.0)[1]]
    solve, calls = ops.solver_step, []

    def poisoned(*arguments, **options):
        result = solve(*arguments, **options)
        calls.append(len(result.x))
        if len(calls) >= at and len(result.x) == 3:
            result.x[1] = torch.nan
        return result

    monkeypatch.setattr(ops, "solver_step", poisoned)
    with pytest.raises(NumericalError, match=f"tick {at}:"):
        streams[1].result()
    assert torch.equal(streams[0].result(), expected[0]) and torch.equal(streams[2].result(), expected[2])


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("fault", [RuntimeError("once"), MemoryError("once")], ids=lambda e: type(e).__name__)
def test_an_error_in_a_later_pass_ends_the_step_and_costs_nothing(fault, stored, monkeypatch):
    engine, streams = three(stored)
    expected = [stream.result() for stream in three()[1]]
    solve, calls = ops.solver_step, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 5 - stored:
            raise fault
        return solve(*arguments, **options)

    monkeypatch.setattr(ops, "solver_step", failing)
    assert engine.step() and ticks(streams) == [4, 4, 4]
    assert all(torch.equal(s.result(), video) for s, video in zip(streams, expected, strict=True))
    assert engine.stats().passes_retried == 0 and engine.stats().streams_failed == 0


def test_a_stream_that_is_poisoned_between_two_steps_fails():
    engine, streams = three()
    expected = three()[1][0].result()
    engine.step(3)
    poison(streams[1])
    with pytest.raises(NumericalError, match="tick 4:"):
        streams[1].result()
    assert torch.equal(streams[0].result(), expected)


def test_a_trace_changes_nothing_and_sees_every_pass(tmp_path):
    engine, streams = three()
    with engine.trace(tmp_path / "trace.json") as recorder:
        engine.step(5)
        engine.step(6)
        engine.step(4)
    records = recorder.records()
    assert [record.index for record in records] == list(range(1, 16)) and ticks(streams) == [16, 16, 16]
    # Pass 12 stores the first frame as well.
    stored = [record.index for record in records if all(stream.commits == 1 for stream in record.streams)]
    moved = [record.index for record in records if all(stream.updates == 1 for stream in record.streams)]
    assert stored == [12] and moved == list(range(1, 16))
    assert all(a.ended <= b.began for a, b in zip(records, records[1:], strict=False))
