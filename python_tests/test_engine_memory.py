# SPDX-License-Identifier: Apache-2.0
"""An engine that has served many streams holds as many objects as one that has served few."""

from __future__ import annotations

import gc

import torch
from effort import ALL
from test_engine import engine_for

from ardiff_engine.engine import Engine, Request
from ardiff_engine.memory import Window


def serve(engine: Engine, rounds: int) -> None:
    """Streams that share passes, of which some are cancelled or dropped on the way."""
    for number in range(rounds):
        streams = [engine.submit(Request(num_frames=3, lag=2, seed=3 * number + i)) for i in range(3)]
        for _ in range(number % 7):
            engine.step(1)
        if number % 3 == 0:
            streams[1].cancel()
        if number % 4 == 0:
            streams.pop()
        for stream in streams:
            if not stream.done:
                stream.result()


def objects_alive() -> tuple[int, int]:
    gc.collect()
    objects = gc.get_objects()
    return len(objects), sum(issubclass(type(thing), torch.Tensor) for thing in objects)


def test_streams_that_have_ended_leave_nothing_behind():
    engine, rounds = engine_for(steps=6, memory=Window(3), max_pages=200), 84 if ALL else 42
    serve(engine, rounds)
    objects_alive()
    before = objects_alive()
    serve(engine, rounds)
    after = objects_alive()
    assert after[1] == before[1] and after[0] - before[0] < rounds, (before, after)
    assert engine.stats().pages_held == 0


def test_an_endless_stream_holds_no_more_after_more_frames():
    engine = engine_for(steps=6, memory=Window(3), max_pages=50)
    stream = engine.submit(Request(num_frames=None, lag=3))  # draws noise for 16 frames at a time

    def read(frames: int) -> None:
        for _ in range(frames * 3):
            engine.step(1)
            stream.take_ready()

    read(64)
    objects_alive()
    before = objects_alive()
    read(128)
    after = objects_alive()
    assert after[1] == before[1] and after[0] - before[0] < 60, (before, after)
