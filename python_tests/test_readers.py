# SPDX-License-Identifier: Apache-2.0
"""Readers that wait, are slow, or leave: their own stream alone is held up, and gives its pages back."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.waiting import PATIENCE, eventually
from inside import inside
from test_engine import engine_for

from ardiff_engine.engine import Engine, Request, Stream, reader
from ardiff_engine.errors import EngineBusyError


def alone(**options) -> torch.Tensor:
    return engine_for().submit(Request(**({"num_frames": 6, "lag": 2} | options))).result()


def endless(engine: Engine, **options) -> Stream:
    return engine.submit(Request(**({"num_frames": None, "lag": 2, "max_ahead": 2} | options)))


def test_a_slow_async_reader_is_waited_for_by_its_own_stream_only():
    engine = engine_for()
    slow = endless(engine)
    behind: list[int] = []

    async def read_slowly() -> None:
        async for frame in slow:
            if frame.index == 1:
                quick = [f.index async for f in engine.submit(Request(num_frames=20, lag=2, seed=1))]
                assert quick == list(range(20))
                behind.append(slow.frames_ready)  # of the frames that 20 others' ticks could have made
            if frame.index == 9:
                return

    asyncio.run(read_slowly())
    assert behind == [2] and slow.state == "cancelled" and engine.stats().pages_held == 0


def test_async_frames_are_those_of_a_plain_loop():
    engine = engine_for()

    async def read(seed: int) -> torch.Tensor:
        request = Request(num_frames=6, lag=2, seed=seed, max_ahead=1)
        return torch.stack([frame.latent async for frame in engine.submit(request)])

    async def both() -> list[torch.Tensor]:
        return await asyncio.gather(read(0), read(1))

    for seed, latents in enumerate(asyncio.run(both())):
        assert torch.equal(latents, alone(seed=seed))


def leave_by_break(engine: Engine, stream: Stream) -> None:
    async def read() -> None:
        async for frame in stream:
            if frame.index == 2:
                break
        # Before the event loop turns again: the next pass may come from another thread at once.
        assert engine.stats().pages_held == 0 and stream.state == "cancelled"

    asyncio.run(read())


def leave_by_error(engine: Engine, stream: Stream) -> None:
    async def read() -> None:
        with pytest.raises(KeyError):
            async for _ in stream:
                raise KeyError
        gc.collect()  # the error that is being handled holds the loop's frame
        assert engine.stats().pages_held == 0 and stream.state == "cancelled"

    asyncio.run(read())


def leave_by_task(engine: Engine, stream: Stream) -> None:
    async def read() -> None:
        async for _ in stream:
            pass

    async def main() -> None:
        task = asyncio.create_task(read())
        while inside(stream).feeder.oldest_unfinished < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.stats().pages_held == 0 and stream.state == "cancelled"

    asyncio.run(main())


def leave_by_close(engine: Engine, stream: Stream) -> None:
    async def read() -> None:
        frames = aiter(stream)
        await anext(frames)
        await frames.aclose()
        assert engine.stats().pages_held == 0 and stream.state == "cancelled"

    asyncio.run(read())


def leave_plain_loop(engine: Engine, stream: Stream) -> None:
    for frame in stream:
        if frame.index == 2:
            break


def leave_to_the_collector(engine: Engine, stream: Stream) -> None:
    cycle: list[object] = [iter(stream)]
    cycle.append(cycle)
    next(cycle[0])  # type: ignore[call-overload]
    del cycle
    gc.collect()


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break,
        leave_by_error,
        leave_by_task,
        leave_by_close,
        leave_plain_loop,
        leave_to_the_collector,
    ],
)
def test_a_reader_that_leaves_gives_all_pages_back_before_the_next_pass(leave):
    engine = engine_for()
    stream = endless(engine)
    leave(engine, stream)
    assert stream.state == "cancelled"
    assert engine.pool.manager.free == engine.pool.manager.unpromised == engine.pool.manager.total
    assert not engine.step()


def test_more_waiting_readers_than_threads_do_not_keep_out_the_one_that_runs():
    engine = engine_for(max_pages=5, max_waiting=6)

    async def read(seed: int) -> list[int]:
        indices = []
        async for frame in endless(engine, seed=seed, max_ahead=1):
            indices.append(frame.index)
            if frame.index == 4:
                break
        return indices

    async def main() -> list[list[int]]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=2))
        return await asyncio.wait_for(asyncio.gather(*(read(seed) for seed in range(5))), PATIENCE)

    assert asyncio.run(main()) == [list(range(5))] * 5
    assert engine.stats().pages_held == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_reading_what_can_never_go_on_is_an_error_and_not_an_endless_loop(monkeypatch, asynchronous):
    monkeypatch.setattr(reader, "STALL_SECONDS", 0.05)
    engine = engine_for()
    stream = endless(engine)
    stream.suspend()
    with pytest.raises(EngineBusyError, match="suspended"):
        if asynchronous:
            asyncio.run(anext(aiter(stream)))
        else:
            next(iter(stream))


def test_a_reader_that_waits_wakes_when_its_stream_is_resumed():
    engine = engine_for()
    stream = engine.submit(Request(num_frames=6, lag=2))
    stream.suspend()

    async def read() -> list[int]:
        async def later() -> None:
            await asyncio.sleep(0.01)
            stream.resume()

        task = asyncio.create_task(later())
        indices = [frame.index async for frame in stream]
        await task
        return indices

    assert asyncio.run(read()) == list(range(6))


def test_a_reader_that_waits_for_pages_wakes_when_a_forgotten_stream_gives_them_back():
    engine = engine_for(max_pages=5, max_waiting=1)
    holder = [endless(engine)]
    while engine.step():
        pass
    waiting = engine.submit(Request(num_frames=4, lag=2, seed=1))

    async def main() -> torch.Tensor:
        task = asyncio.create_task(anext(aiter(waiting)))
        await asyncio.sleep(0.01)
        assert waiting.state == "waiting"
        holder.clear()
        return (await asyncio.wait_for(task, PATIENCE)).latent

    assert torch.equal(asyncio.run(main()), alone(num_frames=4, seed=1)[0])


def test_a_reader_collected_in_the_middle_of_a_foreign_pass_waits_for_nothing():
    """The collector may run in a thread that holds what the pass needs next."""
    engine = engine_for()
    stream = endless(engine)
    frames = iter(stream)
    next(frames)
    entered, collected = threading.Event(), threading.Event()

    def hold(_stream: Stream) -> None:
        entered.set()
        assert collected.wait(PATIENCE)

    other = engine.submit(Request(num_frames=2, lag=1, seed=1, on_step=hold))
    stepping = threading.Thread(target=engine.step)
    stepping.start()
    assert entered.wait(PATIENCE)
    del frames
    assert stream.state == "cancelled" and inside(stream).pages.held, "the other thread is in a pass"
    collected.set()
    stepping.join()
    assert torch.equal(other.result(), alone(num_frames=2, lag=1, seed=1))
    assert stream.state == "cancelled" and engine.stats().pages_held == 0


def test_an_engine_is_collected_with_its_unfinished_streams():
    engine = engine_for()
    engine.submit(Request(num_frames=6, lag=2, on_step=lambda stream: None))
    engine.step(1)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None


def test_a_task_sleeps_through_the_changes_of_others() -> None:
    async def slept() -> None:
        changes, ready = reader.Changes(), False
        task = asyncio.create_task(changes.wait_async(changes.count - 1, lambda: ready))
        for _ in range(3):
            await asyncio.sleep(0.01)
            assert not task.done()
            changes.notify()
        ready = True
        changes.notify()
        assert await task

    asyncio.run(slept())


def test_a_thread_that_waits_for_something_sleeps_through_other_changes(monkeypatch) -> None:
    changes, looks, ready = reader.Changes(), [], threading.Event()

    def reached() -> bool:
        looks.append(changes.count)
        return ready.is_set()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(changes.wait, 0, reached)
        assert eventually(lambda: changes._listeners)
        changes.notify()
        assert looks == [1] and not waiting.done()
        ready.set()
        changes.notify()
        assert waiting.result(PATIENCE) and looks == [1, 2] and not changes._listeners
    assert changes.wait(1, reached)  # what has come already is looked at before it sleeps
    monkeypatch.setattr(reader, "STALL_SECONDS", 0.0)
    assert not changes.wait(2, lambda: False)
