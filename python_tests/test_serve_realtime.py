# SPDX-License-Identifier: Apache-2.0
"""/v1/realtime/video of a real server process: steering, forks, going back, pauses, lost connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket as sockets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import ALL
from helpers.live_session import Session, connected
from helpers.server import ServerProcess, running
from helpers.waiting import PATIENCE, eventually
from websockets.exceptions import InvalidStatus
from websockets.sync import client

import ardiff_engine as ade
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.memory import RecomputedWindow
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.live import LiveStream
from ardiff_engine.serve.served_model import served_model
from ardiff_engine.serve.stage import Stage
from ardiff_engine.serve.wish import Wish

httpx = pytest.importorskip("httpx")
UNSEEN = 8
"""Of the last frames of a video: they have no whole window after them, so a longer one has others there."""


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tiny_model, tmp_path_factory.mktemp("live") / "data") as found:
        yield found
        assert found.stop() == 143
        assert "Traceback" not in found.errors, found.errors


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    pipe = ade.Pipeline.from_pretrained(tiny_model)
    memory = RecomputedWindow(pipe.transformer.spec.num_frames)
    solver = ade.solvers.DDIM(pipe.schedule, 6, prediction=pipe.prediction)
    return Engine(pipe.transformer, solver=solver, memory=memory, codec=pipe.codec, max_pages=256)


def alone(engine: Engine, **wish: Any) -> np.ndarray:
    stream = engine.submit(Request(lag=2, **wish))
    return np.stack([picture.image.numpy() for picture in stream.pictures()])


def begun(engine: Engine, frames: int, seed: int) -> np.ndarray:
    """The first so many frames of an endless stream."""
    return alone(engine, num_frames=frames + UNSEEN, seed=seed)[:frames]


def settled(server: ServerProcess) -> bool:
    """Whether nothing runs, waits or is held in the end."""

    def held() -> int:
        found = httpx.get(f"{server.url}/ready", timeout=PATIENCE).json()
        return sum(found[name] for name in ("streams_running", "streams_waiting", "pages_held"))

    return eventually(lambda: not held())


def test_a_live_stream_has_the_frames_of_the_video_alone(server: ServerProcess, engine: Engine) -> None:
    sessions = [Session(server, num_frames=9 + n, seed=n) for n in range(4)]
    for n, session in enumerate(sessions):
        assert session.until("video.done")["status"] == "finished"
        session.leave()
        np.testing.assert_array_equal(session.video(session.stream), alone(engine, num_frames=9 + n, seed=n))


def test_a_client_that_goes_while_it_is_answered_is_no_fault(server: ServerProcess) -> None:
    """The fixture looks at the log: sending to it had counted as a failed message."""
    for _ in range(8):
        session = Session(server, num_frames=200)
        for _ in range(100):
            session.send("session.ping")
        session.broken_off()
    assert settled(server)


def test_a_receipt_names_the_first_frame_that_shows_the_event(server: ServerProcess, engine: Engine) -> None:
    session = Session(server, endless=True, seed=5)
    session.read(1)
    session.send("session.interaction", event_id="steer", event={"class": 1})
    receipt = session.until("session.interaction.queued")
    assert (receipt["event_id"], receipt["effect"]) == ("steer", "keep")
    first = receipt["first_chunk"]
    session.read(first + 1)
    named = [index for index, events in session.applied[session.stream].items() if "steer" in events]
    assert named == [first] and first > 0
    session.leave()
    shown = session.video(session.stream)[: first + 1]
    plain = begun(engine, first + 1, seed=5)
    np.testing.assert_array_equal(shown[:first], plain[:first])
    assert (shown[first] != plain[first]).any()


def test_a_fork_goes_its_own_way_and_the_first_one_does_not_notice(
    server: ServerProcess, engine: Engine
) -> None:
    session = Session(server, endless=True, seed=6)
    session.send("session.fork", event_id="f", seed=99)
    forked = session.until("session.forked")
    other = forked["stream_id"]
    assert forked["event_id"] == "f"
    session.read(20, other)
    last = max(session.frames[other])
    session.read(last + 1)
    session.leave()
    plain = begun(engine, last + 1, seed=6)
    np.testing.assert_array_equal(session.video(session.stream)[: last + 1], plain)
    assert (session.frames[other][last] != plain[last]).any()


def test_one_stream_of_a_session_is_ended_and_the_others_go_on(server: ServerProcess) -> None:
    session = Session(server, endless=True, seed=6)
    session.send("session.fork")
    other = session.until("session.forked")["stream_id"]
    session.send("session.cancel", event_id="c")
    cancelled = session.until("session.cancelled")
    assert (cancelled["event_id"], cancelled["stream_id"]) == ("c", session.stream)
    assert session.until("video.done", session.stream)["status"] == "cancelled"
    session.read(len(session.frames.get(other, ())) + 4, other)
    session.send("session.ping")
    assert [stream["stream_id"] for stream in session.until("session.pong")["streams"]] == [other]
    session.send("session.suspend")  # of the first one, as it names none
    while (answer := session.receive())["type"] != "error":
        assert answer["type"] != "session.suspended", answer
    assert answer["error"]["code"] == "not_found"
    session.leave()


def test_going_back_makes_the_same_frames_again(server: ServerProcess, engine: Engine) -> None:
    """Not endless, which can go back as far as its window only; with so many steps that it does not end."""
    steps, lag = 100, 20
    session = Session(server, num_frames=1000, num_inference_steps=steps, lag=lag, seed=7)
    session.read(6)
    session.send("session.rollback", chunk_index=3)
    session.until("session.rolled_back")
    before = dict(session.frames[session.stream])
    session.frames[session.stream] = {n: frame for n, frame in before.items() if n < 3}
    frames = 60 if ALL else 12
    session.read(frames)
    session.leave()
    solver = ade.solvers.DDIM(engine.solver.schedule, steps, prediction=engine.solver.prediction)
    stream = engine.submit(Request(lag=lag, num_frames=frames + UNSEEN, seed=7, solver=solver))
    made = iter(stream)
    kept = [next(made) for _ in range(6)][:3]
    stream.rollback(3)
    expected = [frame.pictures[0].image.numpy() for frame in [*kept, *made]][:frames]
    np.testing.assert_array_equal(session.video(session.stream)[:frames], np.stack(expected))


def test_an_endless_stream_says_that_it_keeps_few_frames_to_go_back_to(server: ServerProcess) -> None:
    session = Session(server, endless=True, seed=7)
    session.read(40)
    for chunk, gone in ((1, True), (10**6, False), (-1, False)):
        session.send("session.rollback", chunk_index=chunk)
        while (answer := session.receive())["type"] != "error":
            assert answer["type"] != "session.rolled_back", answer
        error = answer["error"]
        assert error["param"] == "chunk_index" and ("num_frames" in error["message"]) == gone, error
        # Both say what the engine knows: the frame that is missing, or those that it can go back to.
        told = f"rollback to frame {chunk}|got frame {chunk}," if gone else rf"got {chunk}, expected 0\.\.\d+"
        assert re.search(told, error["message"]), error
    session.leave()


def test_a_paused_stream_holds_no_pages_and_goes_on_as_it_was(server: ServerProcess, engine: Engine) -> None:
    session = Session(server, endless=True, seed=8)
    session.read(1)
    session.send("session.suspend")
    assert session.until("session.suspended")["pages"] == 0
    session.send("session.ping", event_id="p")
    pong = session.until("session.pong")
    assert (pong["event_id"], pong["streams"][0]["state"]) == ("p", "suspended")
    session.send("session.resume")
    session.until("session.resumed")
    frames = len(session.frames[session.stream]) + 30
    session.read(frames)
    session.leave()
    shown = session.video(session.stream)[:frames]
    np.testing.assert_array_equal(shown, begun(engine, frames, seed=8))


def test_a_resumable_session_goes_on_over_another_connection(server: ServerProcess, engine: Engine) -> None:
    session = Session(server, num_frames=120, seed=9, resumable=True)
    created, stream = session.created, session.stream
    while len(session.frames.get(stream, {})) < 5:
        session.receive()
    for _ in range(3):
        session.broken_off()
        session.socket = connected(server)
        session.send("session.reconnect", secret=created["secret"], sequence=session.sequence)
        seen = len(session.frames[stream])
        while len(session.frames[stream]) < seen + 5:
            session.receive()
    session.send("session.ping", event_id="still here")
    assert session.until("session.pong")["event_id"] == "still here"
    session.until("video.done")
    np.testing.assert_array_equal(session.video(stream), alone(engine, num_frames=120, seed=9))
    session.send("session.stop")
    session.until("session.done")
    assert settled(server)


def test_nobody_else_goes_on_with_a_session_and_no_message_comes_twice(server: ServerProcess) -> None:
    session = Session(server, endless=True, resumable=True)
    for fields, code in (
        ({"secret": "0" * 32, "sequence": 1}, "not_found"),
        ({"sequence": 1}, "not_found"),
        ({"secret": session.created["secret"]}, "invalid_value"),
        ({"secret": session.created["secret"], "sequence": 10**6}, "gone"),
    ):
        other = connected(server)
        other.send(json.dumps({"type": "session.reconnect", **fields}))
        assert json.loads(other.recv(timeout=PATIENCE))["error"]["code"] == code
        other.close()
    session.send("session.ping")
    session.until("session.pong")
    session.socket.close()
    assert settled(server), "who leaves with a word is not waited for"


def test_mp4_fragments_are_one_film(server: ServerProcess, tmp_path: Path) -> None:
    socket = connected(server)
    start = {"type": "session.start", "num_frames": 10, "num_inference_steps": 6, "lag": 2}
    socket.send(json.dumps(start))
    data, pieces = b"", 0
    while True:
        message = socket.recv(timeout=PATIENCE)
        if isinstance(message, bytes):
            data, pieces = data + message, pieces + 1
        elif "video.done" in message:
            break
    (tmp_path / "film.mp4").write_bytes(data)
    assert pieces >= 10
    assert ade.read_video(tmp_path / "film.mp4").shape == (10, 256, 256, 3)


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        "3",
        '"x"',
        "[" * 2000,
        "{}",
        '{"type": 3}',
        '{"type": "session.fly"}',
        '{"type": "session.start"}',
        '{"type": "session.rollback", "chunk_index": -1}',
        '{"type": "session.rollback", "chunk_index": true}',
        '{"type": "session.rollback", "chunk_index": 1e999}',
        '{"type": "session.rollback", "chunk_index": 99999}',
        '{"type": "session.fork", "seed": "x"}',
        '{"type": "session.fork", "seed": 1e30}',
        '{"type": "session.fork", "seed": 99999999999999999999999}',
        '{"type": "session.interaction"}',
        '{"type": "session.interaction", "event": {"class": 99}}',
        '{"type": "session.interaction", "event": {"class": NaN}}',
        '{"type": "session.interaction", "event": {"prompt": "cat"}}',
        '{"type": "session.ping", "event_id": []}',
        '{"type": "session.suspend", "stream_id": "stream_other"}',
        '{"type": "session.suspend", "stream_id": []}',
        '{"type": "session.suspend", "extra": 1}',
        b"bytes",
    ],
)
def test_wrong_messages_are_answered_and_the_stream_goes_on(server: ServerProcess, message: Any) -> None:
    session = Session(server, num_frames=30)
    session.socket.send(message)
    while (answer := session.receive())["type"] != "error":
        pass
    assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["what"]
    session.send("session.ping")
    session.until("session.pong")
    session.socket.close()


def test_first_message_and_wrong_wishes(server: ServerProcess) -> None:
    for wish in ({"num_frames": 0}, {"model": "other"}, {"format": "gif"}, {"endless": 1}, {"x": 1}):
        socket = connected(server)
        socket.send(json.dumps({"type": "session.suspend"}))
        assert json.loads(socket.recv(timeout=PATIENCE))["type"] == "error"
        socket.send(json.dumps({"type": "session.start", **wish}))
        assert json.loads(socket.recv(timeout=PATIENCE))["type"] == "error"
        socket.close()
    for origin in ("http://evil.example", "null"):
        with pytest.raises(InvalidStatus, match="403"):
            client.connect(server.socket, origin=origin, open_timeout=PATIENCE)


def test_random_disconnects_leave_no_page_held(server: ServerProcess) -> None:
    chance = random.Random(0)
    open_now: list[Session] = []
    for _ in range(60 if ALL else 20):
        if len(open_now) < 6:
            open_now.append(Session(server, endless=True))
        session = open_now[chance.randrange(len(open_now))]
        act = chance.randrange(6)
        if act == 0:
            session.socket.close()
        elif act == 1:  # as a machine that is switched off
            session.socket.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            session.socket.socket.shutdown(sockets.SHUT_RDWR)
            session.socket.close()
        elif act == 2:
            session.send("session.fork", seed=chance.randrange(1000))
        elif act == 3:
            session.send("session.suspend")
        elif act == 4:
            session.send("session.interaction", event={"class": chance.randrange(3)})
        if act < 2:
            open_now.remove(session)
    for session in open_now:
        session.socket.close()
    assert settled(server)


def test_a_reader_who_does_not_read_stalls_his_own_stream_alone(tiny_model: Path) -> None:
    """In this process, where a reader takes nothing; a socket's buffers are megabytes."""
    served = served_model("tiny", ade.Pipeline.from_pretrained(tiny_model), Limits())
    order = served.order(Wish(num_inference_steps=6, lag=2, endless=True, seed=1))

    async def watched() -> tuple[Stream, int]:
        taken: list[int] = []
        offered = asyncio.Event()

        async def never_sent(message: dict[str, Any], _data: bytes | None) -> None:
            taken.append(message["chunk_index"])
            offered.set()
            await asyncio.Event().wait()

        with contextlib.closing(Stage(served.codec)) as stage:
            await asyncio.to_thread(stage.drop("none").result)  # it has started
            stream = served.engine.submit(order.request)
            live = LiveStream(stream, order, "webp", never_sent, stage)
            task = asyncio.create_task(live.run())
            wish = Wish(num_inference_steps=6, lag=2, num_frames=60, seed=3)
            other = served.engine.submit(replace(served.order(wish).request, max_ahead=None))
            await asyncio.to_thread(other.result)
            await offered.wait()
            assert not stream.done and taken == [0]
            task.cancel()
            await asyncio.wait({task})
            return stream, len(stream.levels) + stream.frames_ready

    with served.engine.running():
        stream, waiting = asyncio.run(watched())
        # Eight pieces beside those that were taken at once; an endless stream would have made sixty.
        assert stream.state == "running" and stream.ticks_done < 60
        assert waiting <= 2 * Limits().ahead + 2
        stream.cancel()
        assert served.engine.stats().pages_held == 0


def test_a_stop_tells_the_sessions(tiny_model: Path, tmp_path: Path) -> None:
    with running(tiny_model, tmp_path / "data") as server:
        session = Session(server, endless=True)
        server.process.terminate()
        done = session.until("session.done")
        assert done["error"]["code"] == "server_stops"
        assert server.process.wait(PATIENCE) == 143
