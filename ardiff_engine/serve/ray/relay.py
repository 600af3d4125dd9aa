# SPDX-License-Identifier: Apache-2.0
"""A live session whose frames a replica makes: its messages go through here, both ways.

The session sticks to its replica. If that dies, another one makes the stream again from its start
(`Replayed`), what the client has had already is left out, and the session goes on. One that was forked
or rolled back, or had a stream cancelled, ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import asdict
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection

from ardiff_engine.serve.connected import POLICY
from ardiff_engine.serve.conversation import Conversation
from ardiff_engine.serve.errors import invalid
from ardiff_engine.serve.ray.cluster import Cluster
from ardiff_engine.serve.ray.replayed import Steered
from ardiff_engine.serve.ray.replicas import LOST

MOVE_SECONDS = 60.0
"""In which another replica must have taken a session over."""
AGAIN_SECONDS = 1.0
BRANCHING = ("session.forked", "session.rolled_back", "session.cancelled")
"""Answers after which the session is not what its start and its conditions make."""


class Relay(Conversation):
    """stream: the session's first one, as the client knows it; here: as the replica at work does. chunks: of
    it, that the client has had. steered: what has steered it. paused, branched: whether it was suspended, and
    whether it was forked, rolled back or ended."""

    def __init__(self, cluster: Cluster, socket: WebSocket, owner: str) -> None:
        super().__init__(cluster, socket, owner)
        self._cluster = cluster
        self._start: dict[str, Any] = {}
        self._stream = self._here = ""
        self._chunks = 0
        self._steered: list[Steered] = []
        self._kept = self._paused = self._branched = False
        self._running: set[str] = set()
        # The message that waits for its answer, and the replica's socket once messages may go there.
        self._question: dict[str, Any] | None = None
        self._replied = asyncio.Event()
        self._way: ClientConnection | None = None

    @property
    def count(self) -> int:
        return len(self._running)

    def _cancel(self) -> None:
        """Its task holds the connection to the replica, and ends with the session."""
        self._running.clear()

    async def _act(self, kind: str, event: str | None, values: dict[str, Any]) -> None:
        if kind == "session.start":
            _, self._kept = self._asked(values)
            if values.get("seed") is None:
                values["seed"] = secrets.randbits(32)
            self._start = values
        elif not self.opened:
            raise invalid("the first message", "another one", "session.start", "Start a stream first.")
        self._question = {"type": kind, **values, **({} if event is None else {"event_id": event})}
        self._replied.clear()
        if not self._tasks:
            task = asyncio.ensure_future(self._carry())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif self._way is not None:
            with contextlib.suppress(*LOST):  # then the next replica is asked
                await self._ask(self._way)
        await self._replied.wait()

    async def _ask(self, way: ClientConnection) -> None:
        if self._question is not None:
            await way.send(json.dumps(self._question).replace(self._stream or "\n", self._here))

    async def _carry(self) -> None:
        try:
            await self._carry_on()
        except WebSocketDisconnect:
            return  # the client has gone
        except Exception:
            self._cluster.log.exception("a live session failed")
        why = "it was forked, rolled back or ended" if self._branched else "no other one could take it over"
        self._tasks.clear()  # this task, which the end of the session would cancel
        await self._end("replica_lost", f"the replica of this session has died, and {why}", POLICY)
        self._replied.set()

    async def _carry_on(self) -> None:
        """From the replica to the client; from one replica after the other if they die."""
        loop = asyncio.get_running_loop()
        until = loop.time() + MOVE_SECONDS
        while loop.time() < until and not self._branched:
            try:
                async with self._cluster.replicas.session() as way:
                    if self._stream:
                        await self._make_again(way)
                    self._way = way
                    await self._ask(way)
                    while True:
                        await self._deliver(*await self._received(way))
            except LOST as lost:
                self._cluster.log.warning("a live session has lost its replica: %s", type(lost).__name__)
            if self._way is not None:
                self._way, until = None, loop.time() + MOVE_SECONDS
            await asyncio.sleep(AGAIN_SECONDS)

    async def _make_again(self, way: ClientConnection) -> None:
        """The stream, up to what the client has had. LOST: not by this replica."""
        steered = [asdict(own) for own in self._steered]
        await way.send(json.dumps({"type": "session.start", **self._start, "steered": steered}))
        self._here, left, created = "", self._chunks, False
        while left or not created:
            message, data = await self._received(way)
            kind = message["type"]
            if kind == "error":
                raise ConnectionError(message["error"]["message"])
            if kind == "video.start":
                self._here = message["stream_id"]
            elif kind == "video.chunk_metadata" and left:
                left -= 1
            elif kind == "session.created" and self.opened:
                created = True
            else:
                created = created or kind == "session.created"
                await self._deliver(message, data)
        if self._paused:
            await way.send(json.dumps({"type": "session.suspend"}))
            while (answer := await self._received(way))[0]["type"] != "session.suspended":
                await self._deliver(*answer)

    async def _received(self, way: ClientConnection) -> tuple[dict[str, Any], bytes | None]:
        """A message and its piece. LOST: there is none any more."""
        text = await way.recv(decode=True)
        message: dict[str, Any] = json.loads(text.replace(self._here or "\n", self._stream))
        if message["type"] == "session.done":
            raise ConnectionError("the replica stops")
        del message["sequence"]
        piece = message["type"] == "video.chunk_metadata"
        return message, await way.recv(decode=False) if piece else None

    async def _deliver(self, message: dict[str, Any], data: bytes | None) -> None:
        kind, stream = message["type"], message.get("stream_id")
        question, answers = self._question, data is None and not kind.startswith("video.")
        if kind == "video.start":
            self._running.add(message["stream_id"])
            self._stream, self._here = (
                self._stream or message["stream_id"],
                self._here or message["stream_id"],
            )
        elif kind == "video.done":
            if stream not in self._running:
                return  # the client has had it
            self._running.discard(message["stream_id"])
        elif kind == "video.chunk_metadata":
            self._chunks += stream == self._stream
        elif kind == "session.created":
            self.opened = True
            message |= self._may_come_back() if self._kept else {}
        elif kind == "session.interaction.queued" and question is not None:
            event = question["event"], question.get("event_id")
            self._steered.append(Steered(*event, message["tick"], message["first_chunk"]))
        elif kind in BRANCHING:
            self._branched = True
        elif kind in ("session.suspended", "session.resumed"):
            self._paused = kind == "session.suspended"
        elif kind == "error":
            answers = stream is None  # else a stream has failed
        await self._send(message, data)
        if answers:
            self._question = None
            self._replied.set()
