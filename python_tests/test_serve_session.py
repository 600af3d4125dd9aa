# SPDX-License-Identifier: Apache-2.0
"""One connection of /v1/realtime/video with a client that goes at any moment, or never reads."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import server as _needs  # noqa: F401  the extra serve
from helpers.waiting import PATIENCE, eventually

import ardiff_engine as ade
from ardiff_engine.engine import Stream
from ardiff_engine.serve import connected
from ardiff_engine.serve.jobs import LiveJob
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.live import LiveStream
from ardiff_engine.serve.realtime import Realtime
from ardiff_engine.serve.served_model import served_model
from ardiff_engine.serve.service import Service
from ardiff_engine.serve.wish import Wish

START = {"type": "session.start", "num_inference_steps": 6, "lag": 2, "endless": True, "format": "webp"}
OF_CLIENTS = (Realtime, LiveStream, Stream, LiveJob)


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    model = served_model("tiny", ade.Pipeline.from_pretrained(tiny_model), Limits())
    found = Service(model, tmp_path_factory.mktemp("session") / "data", Limits(grace=0.0))
    yield found
    found.close()


class Client:
    """A socket as Realtime sees it. gone_at: the message that can no longer be sent to it; from then on it is
    closed. reads: whether it takes anything at all."""

    def __init__(self, *messages: dict[str, Any], gone_at: str = "", reads: bool = True) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in messages:
            self.messages.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})
        self._gone_at, self._reads, self.gone = gone_at, reads, False
        self.sent: list[dict[str, Any]] = []
        self.code = 0

    async def receive(self) -> dict[str, Any]:
        return await self.messages.get()

    async def send_text(self, text: str) -> None:
        message = json.loads(text)
        if not self._reads:
            await asyncio.Event().wait()
        if message["type"] == self._gone_at:
            self.gone = True
            self.messages.put_nowait({"type": "websocket.disconnect"})
            raise RuntimeError("the connection is closed")
        self.sent.append(message)

    async def send_bytes(self, data: bytes) -> None: ...

    async def close(self, code: int) -> None:
        self.code = code


def served(service: Service, client: Client) -> None:
    async def session() -> None:
        async with asyncio.timeout(PATIENCE):
            await Realtime(service, client, "local").serve()  # type: ignore[arg-type]

    asyncio.run(session())


def nothing_is_held(service: Service) -> bool:
    """No stream and no page, once what a thread had begun to submit has come."""

    def held() -> int:
        stats = service.model.engine.stats()
        return stats.streams_running + stats.streams_waiting + stats.pages_held

    return eventually(lambda: not held())


@pytest.mark.parametrize("gone_at", ["video.start", "session.created", "video.chunk_metadata"])
def test_a_client_that_goes_at_any_message_leaves_no_stream(service: Service, gone_at: str) -> None:
    """Without the collector, which may come late or never in a server that has nothing to do."""
    gc.disable()
    try:
        client = Client(START, gone_at=gone_at)
        served(service, client)
        assert client.gone and nothing_is_held(service)
    finally:
        gc.enable()


def test_messages_are_taken_while_another_one_is_answered(service: Service) -> None:
    """uvicorn hears no ping of WebSocket while a message waits for `receive`."""

    async def session() -> None:
        client = Client(START, *[{"type": "session.ping"}] * 20, reads=False)
        task = asyncio.create_task(Realtime(service, client, "local").serve())  # type: ignore[arg-type]
        async with asyncio.timeout(PATIENCE):
            while client.messages.qsize():
                await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()

    asyncio.run(session())
    assert nothing_is_held(service)


def test_a_client_that_sends_and_never_reads_is_ended(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connected, "UNREAD_SECONDS", 0.1)
    client = Client(START, *[{"type": "session.ping"}] * (3 * connected.UNANSWERED), reads=False)
    served(service, client)
    taken = 3 * connected.UNANSWERED + 1 - client.messages.qsize()
    assert connected.UNANSWERED <= taken <= connected.UNANSWERED + 3
    assert nothing_is_held(service)


def test_a_resumable_session_is_waited_for_no_longer_than_it_is_said(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "limits", Limits(resume=0.2))

    async def session() -> None:
        client = Client({**START, "resumable": True})
        task = asyncio.create_task(Realtime(service, client, "local").serve())  # type: ignore[arg-type]
        async with asyncio.timeout(PATIENCE):
            while not any(message["type"] == "session.created" for message in client.sent):
                await asyncio.sleep(0.01)
            client.messages.put_nowait({"type": "websocket.disconnect", "code": 1006})
            left = asyncio.get_running_loop().time()
            await task
            assert asyncio.get_running_loop().time() >= left + service.limits.resume

    asyncio.run(session())
    assert nothing_is_held(service)


def test_clients_that_have_gone_leave_no_objects(service: Service) -> None:
    """The memory of a server follows who is there, not how many came."""

    def left() -> list[str]:
        gc.collect()
        return sorted(type(own).__name__ for own in gc.get_objects() if type(own) in OF_CLIENTS)

    async def forks_and_goes(seed: int) -> None:
        client = Client({**START, "seed": seed})
        task = asyncio.create_task(Realtime(service, client, "local").serve())  # type: ignore[arg-type]
        fork = {"type": "websocket.receive", "text": json.dumps({"type": "session.fork"})}
        async with asyncio.timeout(PATIENCE):
            for seen, then in (
                ("video.chunk_metadata", fork),
                ("session.forked", {"type": "websocket.disconnect"}),
            ):
                while seen not in [message["type"] for message in client.sent]:
                    await asyncio.sleep(0.01)
                client.messages.put_nowait(then)
            await task

    before = left()
    for seed in range(3):
        asyncio.run(forks_and_goes(seed))
        job = service.jobs.create(Wish(num_frames=2, num_inference_steps=2, lag=1, seed=seed), "local").id
        if seed:  # else it is deleted on its way
            assert eventually(lambda name=job: service.jobs.live(name) is None)
        service.jobs.remove(job)
    assert nothing_is_held(service)
    assert eventually(lambda: len(left()) <= len(before)), (left(), before)


def test_silence_ends_a_session_with_a_word(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "limits", Limits(start=0.05))
    client = Client()
    served(service, client)
    assert client.sent[0]["error"]["code"] == "timeout" and client.code == connected.POLICY
