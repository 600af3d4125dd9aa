# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, or the collector, at the places of a step where CPython lets them in: no frame or page is lost.

Most tests strike at every fifth or so of these places: all of them take minutes.
"""

from __future__ import annotations

import contextlib
import gc
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from strikes import strikes
from test_engine import engine_for
from test_steady_run import STEPS, guided, in_a_run

from ardiff_engine.engine import Engine, Request, Stream, changes, steps
from ardiff_engine.memory import Window, page_manager

ENGINE, PAGES = Path(steps.__file__).parent, Path(page_manager.__file__)


def test_the_collector_may_end_a_stream_while_the_others_catch_up():
    """A finalizer that comes in while a run is settled ends its stream, and moves nobody twice."""
    expected = [stream.result() for stream in in_a_run()[1]]
    for strike in strikes(ENGINE, least=50):
        engine, streams = in_a_run()
        strike.act = partial(engine.leave, streams[1])
        with strike:
            engine.settle()
        assert engine._steps.run is None and [s.ticks_done for s in streams[::2]] == [5, 5], strike.place
        # The frames at work at every seventh place: the rest takes long.
        if strike.place % 7 == 0:
            for stream, video in zip(streams[::2], expected[::2], strict=True):
                assert torch.equal(stream.result(), video), strike.place
            assert streams[1].state == "cancelled" and not streams[1].latents
            assert engine.stats().pages_held == engine.stats().pages_promised == 0


@pytest.mark.parametrize("tick", [3, 11])
def test_an_interrupt_at_any_place_of_a_step_loses_no_frame(tick):
    """In a step that begins a run, and in one that hands a clean frame over and starts the next."""

    def begun() -> tuple[Engine, list[Stream]]:
        engine = engine_for(steps=STEPS, memory=Window(3), max_pages=300)
        streams = [engine.submit(Request(num_frames=2, lag=12, seed=seed)) for seed in range(2)]
        for _ in range(tick if tick > 3 else 0):
            engine.step()
        return engine, streams

    expected = [stream.result() for stream in begun()[1]]
    for strike in strikes(ENGINE, PAGES, least=220, every=11):
        engine, streams = begun()
        with contextlib.suppress(KeyboardInterrupt), strike:
            engine.step()
        with mock.patch.object(changes, "STALL_SECONDS", 1.0):
            videos = [stream.result() for stream in streams]
        assert all(torch.equal(a, b) for a, b in zip(videos, expected, strict=True)), strike.place
        assert [[frame.index for frame in stream.take_ready()] for stream in streams] == [[0, 1], [0, 1]]
        stats = engine.stats()
        assert stats.pages_held == stats.pages_promised == 0 and stats.streams_finished == 2, strike.place


@pytest.mark.parametrize("act", ["step", "submit", "cancel", "look"])
def test_an_interrupt_in_a_run_loses_nothing(act: str):
    """In a run: within its next pass, or while others' calls end it. Guided, so that inputs are gathered."""
    expected = [stream.result() for stream in guided()[1]]
    returned: list[object] = []  # a stream that is dropped at once would end within the trace
    for strike in strikes(ENGINE, PAGES, least=50, every=5):
        engine, streams = guided()
        for _ in range(5):
            engine.step()
        acts = {
            "step": engine.step,
            "submit": partial(engine.submit, Request(num_frames=1, lag=12)),
            "cancel": streams[2].cancel,
            "look": lambda streams=streams: streams[1].feeder.levels,
        }
        with contextlib.suppress(KeyboardInterrupt), strike:
            returned.append(acts[act]())
        for stream, video in zip(streams[:2], expected, strict=False):
            assert torch.equal(stream.result(), video), strike.place


def test_an_interrupt_while_shared_pages_are_replaced_mixes_no_videos():
    """The first step after a fork, in which each of the two takes pages of its own."""

    def forked() -> tuple[Engine, list[Stream]]:
        engine = engine_for(steps=4, memory=Window(3), max_pages=100)
        stream = engine.submit(Request(num_frames=4, lag=2))
        for _ in range(5):
            engine.step()
        return engine, [stream, stream.fork(seed=9)]

    expected = [stream.result() for stream in forked()[1]]
    for strike in strikes(ENGINE, PAGES, least=200, every=5):
        engine, streams = forked()
        with contextlib.suppress(KeyboardInterrupt), strike:
            engine.step()
        videos = [stream.result() for stream in streams]
        assert all(torch.equal(a, b) for a, b in zip(videos, expected, strict=True)), strike.place
        assert engine.stats().pages_held == engine.stats().pages_promised == 0, strike.place


@pytest.mark.parametrize("way", ["cancel", "drop"])
def test_an_interrupt_while_a_stream_ends_leaks_no_page(way):
    """Whoever is interrupted in cancel() cancels again or drops the handle; who dropped it just goes on."""
    for strike in strikes(ENGINE, PAGES, least=20, every=5, first=1 if way == "cancel" else 2):
        engine, streams = in_a_run()
        dropped = streams.pop()
        if way == "drop":
            del dropped
            gc.collect()
        act = dropped.cancel if way == "cancel" else engine.stats
        with contextlib.suppress(KeyboardInterrupt), strike:
            act()
        del act
        if way == "cancel":
            if strike.place % 2:
                dropped.cancel()
            del dropped
            gc.collect()
        stats = engine.stats()
        assert stats.streams_running == 2 and stats.streams_cancelled == 1, strike.place
        assert stats.pages_promised == sum(stream.pages.most for stream in streams), strike.place
        assert stats.pages_held == sum(stream.pages.held for stream in streams), strike.place
        assert [rows.users for rows in engine._schedules._entries.values()] == [3], strike.place
