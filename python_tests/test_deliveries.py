# SPDX-License-Identifier: Apache-2.0
"""Frames whose pass is known to be good one step later, as on a GPU: here with a delay on the CPU.

Every engine here has a delay of one step, and a copy to the host that refuses to be waited for while its pass
is the last one that was started, unless there is nothing else to run.
"""

from __future__ import annotations

import asyncio
import gc

import pytest
import torch
from inside import inside, poison
from test_ar_diffusion import tiny
from test_engine import SCHEDULE

from ardiff_engine import host_copy
from ardiff_engine.diffusion import solvers
from ardiff_engine.engine import Engine, Request
from ardiff_engine.engine.cuda import graphs as pass_graphs
from ardiff_engine.errors import NumericalError
from ardiff_engine.memory import RecomputedWindow

REQUESTS = [
    Request(num_frames=6, lag=2, seed=0),
    Request(num_frames=3, lag=0, seed=1, guidance_scale=2.0),
    Request(num_frames=8, lag=4, seed=2),
]


class Started:
    """Copies that were started, and those that were waited for while no later pass had been started."""

    def __init__(self) -> None:
        self.copies = 0
        self.early: list[int] = []


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    log = Started()

    class Watched(host_copy.HostCopy):
        def __init__(self, *tensors: torch.Tensor) -> None:
            super().__init__(*tensors)
            log.copies += 1
            self.number = log.copies

        def wait(self) -> tuple[torch.Tensor, ...]:
            if self.number == log.copies:
                log.early.append(self.number)
            return super().wait()

    monkeypatch.setattr(pass_graphs, "HostCopy", Watched)
    return log


def engine_for(delay: int = 1, *, cuda_graphs: bool = True) -> Engine:
    solver = solvers.DDIM(SCHEDULE, num_inference_steps=4, eta=0.5)
    engine = Engine(
        tiny("separate_norm", "temporal_causal", "rope"),
        solver=solver,
        memory=RecomputedWindow(4),
        max_pages=200,
        cuda_graphs=cuda_graphs,
    )
    engine._runner.delay = delay
    return engine


def plain(request: Request) -> torch.Tensor:
    return engine_for(0, cuda_graphs=False).submit(request).result()


def test_a_step_never_waits_for_its_own_pass(started):
    engine = engine_for()
    streams = [engine.submit(request) for request in REQUESTS]
    while any(inside(s).runnable for s in streams):
        assert engine.step(1)
    assert started.copies == engine.stats().passes and not started.early
    # The last pass has no successor: the next step runs nothing and brings in what is left.
    assert engine.step() and len(started.early) == 1 and not engine.step()
    assert [stream.state for stream in streams] == ["finished"] * 3
    for stream in streams:
        assert torch.equal(stream.result(), plain(stream.request))
    stats = engine.stats()
    assert stats.pages_held == 0 and stats.frames == 17 and stats.streams_finished == 3


def test_frames_come_one_step_later_and_in_order(started):
    request = Request(num_frames=6, lag=2)
    ticks: dict[int, list[int]] = {}
    for delay in (0, 1):
        engine = engine_for(delay)
        stream = engine.submit(request)
        ticks[delay] = []
        while engine.step(1):
            ticks[delay] += [stream.ticks_done] * len(stream.take_ready())
    # The last frame has no later pass: a step without one brings it in.
    assert ticks[0] == [4, 6, 8, 10, 12, 14] and ticks[1] == [5, 7, 9, 11, 13, 14]


def test_reading_by_result_loop_and_async(started):
    engine = engine_for()
    loop, awaited, collected = (engine.submit(request) for request in REQUESTS)
    frames = [frame.latent for frame in loop]
    assert torch.equal(torch.stack(frames), plain(REQUESTS[0]))

    async def read() -> list[torch.Tensor]:
        return [frame.latent async for frame in awaited]

    assert torch.equal(torch.stack(asyncio.run(read())), plain(REQUESTS[1]))
    assert torch.equal(collected.result(), plain(REQUESTS[2]))
    assert engine.stats().pages_held == 0


@pytest.mark.parametrize("tick", range(1, 9))
def test_a_struck_stream_fails_one_step_later_and_no_bad_frame_is_read(tick, started):
    engine = engine_for()
    good, bad = engine.submit(REQUESTS[2]), engine.submit(REQUESTS[0])
    while bad.ticks_done < tick:
        engine.step(1)
    poison(bad)
    engine.step(1)
    assert bad.state == "running" and bad.ticks_done == tick + 1, "nobody has looked yet"
    engine.step(1)
    assert bad.state == "failed"
    assert all(bool(torch.isfinite(frame.latent).all()) for frame in bad.take_ready())
    with pytest.raises(NumericalError, match=f"at tick {tick}:"):
        bad.result()
    assert torch.equal(good.result(), plain(REQUESTS[2]))
    assert engine.stats().pages_held == 0 and engine.stats().streams_failed == 1


def test_the_last_pass_can_strike_too(started):
    engine = engine_for()
    stream = engine.submit(Request(num_frames=1, lag=2))
    for _ in range(3):
        engine.step(1)
    poison(stream)
    assert engine.step(1) and inside(stream).feeder.done and stream.state == "running"
    with pytest.raises(NumericalError):
        stream.result()
    assert not stream.frames_ready and engine.stats().pages_held == 0


EDITS = {
    "fork": lambda stream: stream.fork(seed=9),
    "rollback": lambda stream: stream.rollback(min(1, inside(stream).feeder.oldest_unfinished)),
    "extend": lambda stream: stream.extend(2),
    "recommit": lambda stream: stream.set_condition(torch.ones(5, 12), effect="recommit"),
    "suspend": lambda stream: (stream.suspend(), stream.resume()),
}


@pytest.mark.parametrize("tick", [1, 4, 7, 11])
@pytest.mark.parametrize("edit", EDITS)
def test_edits_find_a_stream_as_its_reader_does(edit, tick, started):
    """The same edit after the same pass gives the same videos, whether results were on their way or not."""
    videos = []
    for delay in (0, 1):
        engine = engine_for(delay)
        stream = engine.submit(REQUESTS[0])
        while stream.ticks_done < tick:
            engine.step(1)
        other = EDITS[edit](stream)
        assert engine._results.on_their_way == 0
        videos.append([stream.result()] + ([other.result()] if edit == "fork" else []))
    assert all(torch.equal(a, b) for a, b in zip(*videos, strict=True))


def test_callbacks_edit_while_results_are_on_their_way(started):
    """An edit in a callback brings in what its step computed; nobody finishes before its own callback."""

    def roll_back_once(stream) -> None:
        if stream.ticks_done == 9 and not done:
            done.append(1)
            stream.rollback(1)

    videos, counts = [], []
    for delay in (0, 1):
        done: list[int] = []
        calls: list[int] = []
        engine = engine_for(delay)
        first = engine.submit(Request(num_frames=6, lag=2, on_step=roll_back_once))
        other = engine.submit(
            Request(num_frames=4, lag=2, seed=1, on_step=lambda stream, calls=calls: calls.append(1))
        )
        videos.append((first.result(), other.result()))
        counts.append((first.ticks_done, other.ticks_done, len(calls)))
    assert counts[0] == counts[1] and counts[1][1] == counts[1][2]
    assert all(torch.equal(a, b) for a, b in zip(*videos, strict=True))


def test_a_late_extension_continues_the_video(started):
    videos = []
    for delay in (0, 1):
        engine = engine_for(delay)
        stream = engine.submit(Request(num_frames=3, lag=0))
        engine.step(1)
        stream.extend(3)
        videos.append(stream.result())
    assert len(videos[1]) == 6 and torch.equal(*videos)


def test_a_slow_reader_stops_its_stream_at_max_ahead(started):
    """Frames on their way count as unread."""
    engine = engine_for()
    stream = engine.submit(Request(num_frames=8, lag=2, max_ahead=2))
    while engine.step():
        assert stream.frames_ready + inside(stream).outbox.frames_under_way <= 2
    assert stream.frames_ready == 2 and stream.state == "running"


def test_a_dropped_stream_is_not_kept_by_what_is_on_its_way(started):
    engine = engine_for()
    stream = engine.submit(REQUESTS[0])
    for _ in range(5):
        engine.step(1)
    assert engine._results.on_their_way == 1
    del stream
    gc.collect()
    assert engine.stats().pages_held == 0 and engine.stats().streams_cancelled == 1
    assert not engine.step() and engine._results.on_their_way == 0


def test_a_cancelled_stream_gets_nothing_more(started):
    engine = engine_for()
    stream = engine.submit(REQUESTS[0])
    for _ in range(4):
        engine.step(1)
    stream.cancel()
    assert not stream.frames_ready, "frame 0 was on its way"
    while engine.step():
        pass
    assert not stream.frames_ready and stream.state == "cancelled" and engine.stats().frames == 0
