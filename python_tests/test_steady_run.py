# SPDX-License-Identifier: Apache-2.0
"""Passes that leave the streams alone give the same bits as passes that ask them, whatever happens."""

from __future__ import annotations

import gc
import random
from functools import partial

import pytest
import torch
from effort import seeds
from test_ar_diffusion import tiny
from test_engine import SCHEDULE, engine_for

from ardiff_engine import ops
from ardiff_engine.diffusion import solvers
from ardiff_engine.engine import Engine, Request, Stream, steps
from ardiff_engine.engine.steady_run import SteadyRun
from ardiff_engine.errors import ArdiffError, NumericalError
from ardiff_engine.memory import Full, RecomputedWindow, Window

STEPS = 12
NOISY = solvers.DDIM(SCHEDULE, num_inference_steps=9, eta=0.5)
KINDS = [
    {"num_frames": 5, "lag": 12},
    {"num_frames": 6, "lag": 5, "seed": 1},
    {"num_frames": 3, "lag": 0, "guidance_scale": 2.0},
    {"num_frames": 4, "lag": 7, "solver": NOISY, "seed": 2},
    {"num_frames": 5, "lag": 4, "memory": Window(3, sink=1), "guidance_scale": 0.0},
    {"num_frames": 5, "lag": 6, "memory": Full(), "max_ahead": 3},
]


def runs_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LEAST_PASSES", 1 << 30)


def everything(engine: Engine, streams: list[Stream]) -> list[object]:
    """What anybody can see of the streams."""
    seen: list[object] = []
    for stream in streams:
        latents = {} if stream.done else {f: x.clone() for f, x in stream.latents.items()}
        seen += [stream.ticks_done, stream.state, dict(stream.feeder.levels), stream.frames_ready, latents]
    stats = engine.stats()
    return [*seen, stats.ticks, stats.cells, stats.updates, stats.frames, stats.pages_held]


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    return a == b


def story(seed: int) -> tuple[list[list[object]], list[torch.Tensor | None], int]:
    """A random life of an engine: what was seen on the way, the videos, and the passes done in runs."""
    chance = random.Random(seed)
    engine = engine_for(steps=STEPS, max_pages=600)
    engine._steps.turns.max_batch_tokens = chance.choice([None, None, 1000, 20])
    streams: list[Stream] = []
    seen: list[list[object]] = []
    in_runs = 0
    for _ in range(25):
        act = chance.randrange(9)
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
                stream.rollback(max(0, stream.feeder.oldest_unfinished - chance.randrange(3)))
            elif act == 6:
                seen.append(everything(engine, streams))
        except ArdiffError:
            pass
        for _ in range(chance.randrange(1, 7)):
            engine.step()
            in_runs += engine._steps.run is not None and engine._steps.run.passes > 0
    for stream in streams:
        stream.resume() if stream.state == "suspended" else None
        stream.take_ready()
    return seen, [None if s.done and s.state != "finished" else s.result() for s in streams], in_runs


@pytest.mark.parametrize("seed", seeds(30))
def test_no_one_can_tell_that_streams_were_left_alone(seed, monkeypatch):
    seen, videos, _ = story(seed)
    runs_forbidden(monkeypatch)
    expected, expected_videos, none = story(seed)
    assert none == 0
    assert all(same(a, b) for a, b in zip(sum(seen, []), sum(expected, []), strict=True))
    assert all(a is b or torch.equal(a, b) for a, b in zip(videos, expected_videos, strict=True))


def test_stories_have_runs():
    assert sum(story(seed)[2] for seed in range(10)) > 100


@pytest.mark.parametrize("merge", ["separate_norm", "reproduce", "sharenorm_shift_first_t"])
@pytest.mark.parametrize("mask", ["temporal_causal", "video_temporal_causal", "none"])
def test_masks_that_feed_waiting_frames_and_contexts(mask, merge, monkeypatch):
    def videos() -> list[torch.Tensor]:
        engine = engine_for(
            tiny(merge, mask, "absolute"), steps=STEPS, memory=RecomputedWindow(4), max_pages=300
        )
        requests = [
            Request(num_frames=4, lag=lag, seed=lag, guidance_scale=scale)
            for lag, scale in ((5, 1.0), (12, 3.0))
        ]
        streams = [engine.submit(request) for request in requests]
        return [stream.result() for stream in streams]

    got = videos()
    runs_forbidden(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(got, videos(), strict=True))


def in_a_run(**options) -> tuple[Engine, list[Stream]]:
    """Three streams, some passes into a run."""
    engine = engine_for(steps=STEPS, memory=Window(3))
    streams = [engine.submit(Request(num_frames=4, lag=12, seed=seed, **options)) for seed in range(3)]
    for _ in range(5):
        engine.step()
    assert engine._steps.run is not None and engine._steps.run.passes >= 2
    return engine, streams


def test_a_run_asks_neither_plans_nor_pages(monkeypatch):
    engine, streams = in_a_run()
    for stream in streams:
        monkeypatch.setattr(stream._feeder, "next", pytest.fail)
        monkeypatch.setattr(stream, "prepare", pytest.fail)
    monkeypatch.setattr(engine._packer, "layout", pytest.fail)
    assert engine.step() and [stream.ticks_done for stream in streams] == [6, 6, 6]
    assert engine._steps.run is not None, "to look at the number of passes is not to look at the stream"


def test_looking_at_one_stream_brings_all_up_to_date():
    engine, streams = in_a_run()
    assert streams[1].feeder.levels == {0: 5} and engine._steps.run is None
    assert [stream._feeder.tick for stream in streams] == [5, 5, 5]


def test_a_stream_that_is_dropped_gives_its_pages_back_before_the_next_pass():
    engine, streams = in_a_run()
    held = engine.stats().pages_held
    alone = engine_for(steps=STEPS, memory=Window(3)).submit(Request(num_frames=4, lag=12, seed=2)).result()
    del streams[0]
    gc.collect()
    assert engine.step() and engine.pool.manager.held == held // 3 * 2
    assert torch.equal(streams[1].result(), alone)


def test_one_that_fails_in_a_run_fails_alone(monkeypatch):
    engine, streams = in_a_run()
    alone = [
        engine_for(steps=STEPS, memory=Window(3)).submit(Request(num_frames=4, lag=12, seed=seed)).result()
        for seed in (0, 2)
    ]
    solve, struck = ops.solver_step, []

    def poisoned(*arguments, **options):
        result = solve(*arguments, **options)
        if not struck:
            result.x[1] = torch.nan
            struck.append(len(result.x))
        return result

    monkeypatch.setattr(ops, "solver_step", poisoned)
    engine.step()
    # Done again by the streams themselves: what was not the network's fault has gone.
    assert struck == [3] and [stream.ticks_done for stream in streams] == [6, 6, 6]
    streams[1].latents[0] = torch.full_like(streams[1].latents[0], torch.nan)
    with pytest.raises(NumericalError):
        streams[1].result()
    assert torch.equal(streams[0].result(), alone[0]) and torch.equal(streams[2].result(), alone[1])


def guided() -> tuple[Engine, list[Stream]]:
    engine = engine_for(steps=STEPS, memory=Window(3), max_pages=300)
    kinds = [{"seed": seed, "guidance_scale": 2.0} for seed in range(3)]
    return engine, [engine.submit(Request(num_frames=1, lag=12, **kind)) for kind in kinds]


def test_memory_that_is_short_between_two_passes_is_no_pass(monkeypatch):
    expected = [stream.result() for stream in guided()[1]]
    engine, streams = guided()
    for _ in range(5):
        engine.step()
    accept, struck = SteadyRun.accept, []

    def short(run, latents):
        if not struck:
            struck.append(run.passes)
            with monkeypatch.context() as patch:
                patch.setattr(
                    torch, "cat", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("injected"))
                )
                accept(run, latents)
        accept(run, latents)

    monkeypatch.setattr(SteadyRun, "accept", short)
    assert engine.step() and struck and engine.ticks == 6
    assert all(torch.equal(s.result(), video) for s, video in zip(streams, expected, strict=True))


def test_an_error_or_an_interrupt_in_a_run_loses_nothing(monkeypatch):
    for fault in (RuntimeError("once"), KeyboardInterrupt()):
        engine, streams = in_a_run()
        expected = engine_for(steps=STEPS, memory=Window(3)).submit(Request(num_frames=4, lag=12)).result()
        compute, faults = engine._passes.compute, [fault]

        def failing(batch, compute=compute, faults=faults):
            if faults:
                raise faults.pop()
            return compute(batch)

        monkeypatch.setattr(engine._passes, "compute", failing)
        if isinstance(fault, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                engine.step()
        else:
            assert engine.step()
        assert torch.equal(streams[0].result(), expected)


def test_a_callback_is_called_at_every_pass_and_a_trace_sees_all_of_them(tmp_path):
    calls: list[int] = []
    engine = engine_for(steps=STEPS)
    stream = engine.submit(Request(num_frames=2, lag=12, on_step=lambda s: calls.append(s.ticks_done)))
    stream.result()
    assert calls == list(range(1, 25))
    engine, streams = in_a_run()
    with engine.trace(tmp_path / "trace.json") as recorder:
        for _ in range(3):
            engine.step()
    assert len(recorder.records()) == 3
