# SPDX-License-Identifier: Apache-2.0
"""`ardiff serve --ray 2`: a real Ray with two replicas, which are killed under load."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.live_session import Session
from helpers.server import ServerProcess, running
from helpers.waiting import PATIENCE, eventually

import ardiff_engine as ade
from ardiff_engine.engine import Engine, Request, Stream
from ardiff_engine.memory import RecomputedWindow

pytest.importorskip("ray", reason="needs the extra cluster")
httpx = pytest.importorskip("httpx")
QUICK = {"num_inference_steps": 6, "lag": 2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: sockets lie in it
    environment = {"RAY_TMPDIR": temporary, "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        data = tmp_path_factory.mktemp("ray") / "data"
        with contextlib.ExitStack() as held:
            deadline = time.monotonic() + 5 * PATIENCE
            while True:
                try:
                    found = held.enter_context(running(tiny_model, data, "--ray", "2", env=environment))
                    break
                except AssertionError as error:  # Ray gives its own first node 30 s, however slow the machine
                    if "timed out during startup" not in str(error) or time.monotonic() > deadline:
                        raise
            yield found
            assert found.stop() == 143
            assert "Traceback" not in found.errors and " INFO " not in found.errors, found.errors
            assert {path.suffix for path in data.iterdir()} <= {".sqlite", ".mp4"}, "replicas have left files"
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tiny_model, tmp_path_factory.mktemp("alone") / "data") as found:
        yield found


def test_folders_of_dead_replicas_of_this_machine_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ardiff_engine.serve.ray.replica import REPLICAS, own_folder

    monkeypatch.setattr("socket.gethostname", lambda: "node")
    dead = 1 << 30  # beyond any process
    for name in (f"node/{dead}", f"node/{os.getppid()}", f"node-2/{dead}"):
        (tmp_path / REPLICAS / name).mkdir(parents=True)
    assert own_folder(tmp_path) == tmp_path / REPLICAS / "node" / str(os.getpid())
    left = {str(path.relative_to(tmp_path / REPLICAS)) for path in (tmp_path / REPLICAS).glob("*/*")}
    assert left == {f"node/{os.getppid()}", f"node-2/{dead}"}, "node-2 is another machine"


def descendants(process: int) -> list[int]:
    found, parents = [], {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    todo = [process]
    while todo:
        parent = todo.pop()
        own = [child for child, of in parents.items() if of == parent]
        found += own
        todo += own
    return found


def replicas_of(server: ServerProcess) -> list[int]:
    """Processes of the replicas, which Ray starts below the server."""
    found = []
    for process in descendants(server.process.pid):
        try:
            if "ServeReplica" in Path(f"/proc/{process}/cmdline").read_text():
                found.append(process)
        except OSError:
            continue
    return found


def replica_with_a_session(server: ServerProcess) -> int:
    """The one with an open connection over IPv4; Ray's own are IPv6."""
    found: list[int] = []

    def seen() -> bool:  # not always at the first look: these tables change while they are read
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        open_ones = {f"socket:[{row[9]}]" for row in rows if row[3] == "01"}
        found[:] = [process for process in replicas_of(server) if open_ones & sockets_of(process)]
        return len(found) == 1

    assert eventually(seen)
    return found[0]


def sockets_of(process: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{process}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry))
    return found


def two_ready(server: ServerProcess) -> list[int]:
    """The processes of both replicas, once both answer and one that has been killed is gone."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        answer = httpx.get(f"{server.url}/ready", timeout=PATIENCE)
        if answer.status_code == 200 and answer.json()["replicas"] == 2:
            if len(found := replicas_of(server)) == 2:
                return found
        time.sleep(0.2)
    raise AssertionError("two replicas are not ready after long patience")


def asked(server: ServerProcess, **wish: Any) -> str:
    answer = httpx.post(f"{server.url}/v1/videos", json={**QUICK, **wish}, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def video(server: ServerProcess, name: str) -> bytes:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found = httpx.get(f"{server.url}/v1/videos/{name}", timeout=PATIENCE).json()
        assert found["status"] != "failed", found
        if found["status"] == "completed":
            return bytes(httpx.get(f"{server.url}/v1/videos/{name}/content", timeout=PATIENCE).content)
        time.sleep(0.05)
    raise AssertionError("not finished after long patience")


def test_a_killed_replica_loses_no_accepted_video(cluster: ServerProcess, alone: ServerProcess) -> None:
    wishes = [{"num_frames": 24 + n, "seed": n} for n in range(8)]
    expected = [video(alone, asked(alone, **wish)) for wish in wishes]
    first, _ = two_ready(cluster)
    names = [asked(cluster, **wish) for wish in wishes]
    os.kill(first, signal.SIGKILL)
    assert [video(cluster, name) for name in names] == expected
    assert len(two_ready(cluster)) == 2  # it has been replaced


def steered_alone(model: Path, seed: int, receipt: dict[str, Any], class_id: int, frames: int) -> np.ndarray:
    """By an engine of this process: the condition comes after the tick that the receipt names."""
    pipe = ade.Pipeline.from_pretrained(model)
    memory = RecomputedWindow(pipe.transformer.spec.num_frames)
    solver = ade.solvers.DDIM(pipe.schedule, 6, prediction=pipe.prediction)
    engine = Engine(pipe.transformer, solver=solver, memory=memory, codec=pipe.codec, max_pages=256)

    def steer(stream: Stream) -> None:
        if stream.ticks_done == receipt["tick"]:
            stream.set_condition(class_id)

    stream = engine.submit(Request(lag=2, seed=seed, num_frames=frames, on_step=steer))
    return np.stack([picture.image.numpy() for picture in stream.pictures()])


def test_a_live_session_goes_on_in_another_replica_with_the_same_bytes(
    cluster: ServerProcess, tiny_model: Path
) -> None:
    """Killed while it runs and again while it is suspended. `Session` checks that no message is left out, and
    that none comes twice."""
    two_ready(cluster)
    session = Session(cluster, endless=True, seed=11)

    def read(more: int) -> int:
        until = len(session.frames.get(session.stream, {})) + more
        while len(session.frames.get(session.stream, {})) < until:
            assert session.receive()["type"] != "error"
        return until

    read(10)
    session.send("session.interaction", event_id="steer", event={"class": 1})
    receipt = session.until("session.interaction.queued")
    assert receipt["event_id"] == "steer" and receipt["first_chunk"] > 0
    read(5)
    os.kill(replica_with_a_session(cluster), signal.SIGKILL)
    read(40)
    session.send("session.suspend")
    session.until("session.suspended")
    two_ready(cluster)
    os.kill(replica_with_a_session(cluster), signal.SIGKILL)
    session.send("session.ping")
    assert session.until("session.pong")["streams"][0]["state"] == "suspended"
    session.send("session.resume")
    session.until("session.resumed")
    frames = max(read(30), receipt["first_chunk"] + 1)
    read(frames - len(session.frames[session.stream]))
    session.send("session.stop")
    session.until("session.done")
    assert cluster.errors.count("a live session has lost its replica") >= 2
    shown = session.video(session.stream)
    # Longer, as the last frames of a video have none after them.
    alone = steered_alone(tiny_model, 11, receipt, 1, len(shown) + 16)
    np.testing.assert_array_equal(shown, alone[: len(shown)])
    named = [index for index, events in session.applied[session.stream].items() if "steer" in events]
    assert named == [receipt["first_chunk"]]


def test_a_video_can_be_deleted_while_it_is_made(cluster: ServerProcess) -> None:
    two_ready(cluster)
    name = asked(cluster, num_frames=1000)
    assert httpx.delete(f"{cluster.url}/v1/videos/{name}", timeout=PATIENCE).json()["deleted"]
    assert httpx.get(f"{cluster.url}/v1/videos/{name}", timeout=PATIENCE).status_code == 404
    until = time.monotonic() + PATIENCE
    while (facts := httpx.get(f"{cluster.url}/ready", timeout=PATIENCE).json()).get("pages_held", 1):
        assert time.monotonic() < until, facts
        time.sleep(0.05)


def test_what_cannot_be_made_is_refused_as_by_one_server(
    cluster: ServerProcess, alone: ServerProcess
) -> None:
    for wish in ({"class_id": 10**6}, {"size": "17x17"}, {"steps": 3}):
        answers = [
            httpx.post(f"{own.url}/v1/videos", json=wish, timeout=PATIENCE) for own in (cluster, alone)
        ]
        assert answers[0].status_code == answers[1].status_code == 400
        assert answers[0].json() == answers[1].json()
