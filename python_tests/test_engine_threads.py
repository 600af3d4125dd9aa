# SPDX-License-Identifier: Apache-2.0
"""One engine and many threads: a thread of its own, edits from others, streams that nobody can reach."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
import torch
from helpers.waiting import PATIENCE
from inside import inside
from test_engine import engine_for

from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.errors import EngineBusyError, OutOfPagesError
from ardiff_engine.memory import Full, Window


def alone(**options) -> torch.Tensor:
    return engine_for().submit(Request(**({"num_frames": 6, "lag": 2} | options))).result()


def test_an_engine_that_runs_serves_readers_of_all_kinds():
    engine = engine_for()
    with engine.running():
        streams = [engine.submit(Request(num_frames=6, lag=2, seed=seed)) for seed in range(3)]
        stepping: set[str] = set()
        step = Engine._step

        async def read() -> list[torch.Tensor]:
            return [frame.latent async for frame in streams[2]]

        def watched(self, passes):
            if self is engine:
                stepping.add(threading.current_thread().name)
            return step(self, passes)

        Engine._step = watched  # type: ignore[method-assign]
        try:
            assert torch.equal(streams[0].result(), alone(seed=0))
            assert torch.equal(torch.stack([frame.latent for frame in streams[1]]), alone(seed=1))
            assert torch.equal(torch.stack(asyncio.run(read())), alone(seed=2))
        finally:
            Engine._step = step  # type: ignore[method-assign]
        assert stepping <= {"ardiff-engine"}
        with pytest.raises(EngineBusyError), engine.running():
            pass
    assert torch.equal(engine.submit(Request(num_frames=6, lag=2)).result(), alone())
    assert "ardiff-engine" not in [thread.name for thread in threading.enumerate()]


def test_a_reader_that_is_interrupted_leaves_the_passes_alone():
    """What Ctrl-C does to the thread that reads while another one steps."""
    engine = engine_for()
    with engine.running():
        other = engine.submit(Request(num_frames=6, lag=2, seed=1))
        frames = iter(engine.submit(Request(num_frames=6, lag=2)))
        next(frames)
        with pytest.raises(KeyboardInterrupt):
            frames.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
        assert torch.equal(other.result(), alone(seed=1))
    assert engine.stats().pages_held == 0 and engine.stats().streams_failed == 0


def test_edits_from_other_threads_come_between_two_passes_and_their_errors_go_home():
    engine = engine_for(max_pages=200)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            engine.step()

    thread = threading.Thread(target=run)
    background = engine.submit(Request(num_frames=None, lag=2, max_ahead=10**6, seed=5))
    thread.start()
    try:
        # Unread, each pauses long before its end, however late the edits come.
        streams = [engine.submit(Request(num_frames=40, lag=2, seed=n, max_ahead=8)) for n in range(3)]
        child = streams[0].fork(seed=7)
        streams[1].suspend()
        assert streams[1].state == "suspended" and not inside(streams[1]).pages.held
        streams[1].resume()
        streams[2].extend(2)
        with pytest.raises(ValueError, match="effect"):
            child.set_condition(None, effect="no such")  # type: ignore[arg-type]
        for stream in streams[:2]:
            assert torch.equal(stream.result(), alone(num_frames=40, seed=stream.request.seed))
        assert len(streams[2].result()) == 42 and len(child.result()) == 40
        background.cancel()
        assert background.state == "cancelled"
    finally:
        stop.set()
        thread.join()
    assert engine.stats().pages_held == 0


def test_going_back_while_another_thread_reads():
    """No frame is read twice without a rollback between, none is lost, none is torn. The reader stops before
    the end until all has been tried: a finished stream does not go back."""
    engine = engine_for(memory=Full(), max_pages=200)
    stream = engine.submit(Request(num_frames=60, lag=4, max_ahead=4))
    expected = engine_for(memory=Full(), max_pages=200).submit(Request(num_frames=60, lag=4)).result()
    read: list[tuple[int, torch.Tensor]] = []
    errors: list[BaseException] = []
    tried = threading.Event()

    def reads() -> None:
        try:
            for frame in stream:
                read.append((frame.index, frame.latent))
                assert frame.index < 40 or tried.wait(PATIENCE)
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=reads)
    reader.start()
    for _ in range(30):
        stream.rollback(max(0, inside(stream).feeder.oldest_unfinished - 2))
    tried.set()
    reader.join()
    assert not errors and {index for index, _ in read} == set(range(60))
    assert all(b <= a + 1 for (a, _), (b, _) in zip(read, read[1:], strict=False))
    for index, latent in read:
        torch.testing.assert_close(latent, expected[index], rtol=1e-4, atol=1e-4)


# --- streams that nobody can reach


def forget(streams: list[Stream]) -> None:
    streams.clear()
    gc.collect()


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("how", ["suspended", "paused", "waiting"])
def test_a_stream_that_nobody_can_reach_is_freed(how, watched):
    """Also where its callback refers to its handle."""
    engine = engine_for(max_pages=5 if how == "waiting" else 100, max_waiting=1)
    holder = [engine.submit(Request(num_frames=6, lag=2, seed=9))] if how == "waiting" else []
    streams: list[Stream] = []
    own: list[Stream] = []
    on_step = (lambda stream, own=own: own[0].state) if watched else None
    ahead = 1 if how == "paused" else None
    streams.append(engine.submit(Request(num_frames=None, lag=2, on_step=on_step, max_ahead=ahead)))
    own += streams
    del own, on_step  # each would lead to the handle
    if how == "paused":
        while engine.step():
            pass
        assert streams[0].frames_ready == 1
    if how == "suspended":
        engine.step()
        streams[0].suspend()
    gone = weakref.ref(inside(streams[0]).feeder)
    assert gone() is not None
    forget(streams)
    if how == "waiting" and watched:
        # Its callback is still to come: it starts when there are pages, and is paused then.
        holder.clear()
        while engine.step():
            pass
        gc.collect()
    stats = engine.stats()
    assert stats.streams_suspended == stats.streams_waiting == 0
    assert stats.streams_running == len(holder)
    holder.clear()
    gc.collect()
    stats = engine.stats()
    assert stats.pages_held == stats.pages_promised == 0 and not engine._scheduler.streams and gone() is None


def test_a_watched_stream_that_is_read_again_goes_on_without_a_reference():
    calls: list[int] = []
    engine = engine_for()

    def on_step(stream: Stream) -> None:
        calls.append(stream.ticks_done)

    stream = engine.submit(Request(num_frames=6, lag=2, max_ahead=1, on_step=on_step))
    while engine.step():
        pass
    paused = len(calls)
    while not stream.done:
        stream.take_ready()
        engine.step()
    assert len(calls) > paused and engine.stats().streams_finished == 1


@pytest.mark.parametrize("how", ["waiting", "suspended"])
def test_an_extension_that_can_never_be_served_is_refused_and_blocks_nobody(how):
    engine = engine_for(memory=Full(), max_pages=6, max_waiting=2)
    first = engine.submit(Request(num_frames=4, lag=4))
    stream = engine.submit(Request(num_frames=4, lag=4, seed=1))
    if how == "suspended":
        first.cancel()
        engine.step()
        stream.suspend()
    with pytest.raises(OutOfPagesError):
        stream.extend(4)
    behind = engine.submit(Request(num_frames=2, lag=4, seed=2))
    first.cancel()
    if how == "suspended":
        stream.resume() if behind.result() is not None else None
    expected = engine_for(memory=Full()).submit(Request(num_frames=4, lag=4, seed=1)).result()
    assert torch.equal(stream.result(), expected) and len(behind.result()) == 2


def test_result_that_is_interrupted_leaves_max_ahead_in_force(monkeypatch):
    engine = engine_for(memory=Window(3))
    stream = engine.submit(Request(num_frames=20, lag=4, max_ahead=1))
    step = engine.step
    with monkeypatch.context() as patch:

        def interrupted(*arguments):
            step(*arguments)
            raise KeyboardInterrupt

        patch.setattr(engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.result()
    while engine.step():
        pass
    assert stream.frames_ready == 1 and stream.state == "running"
