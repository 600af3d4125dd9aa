# SPDX-License-Identifier: Apache-2.0
"""One stream that somebody watches: its frames on their way to him, and the events that have steered it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ardiff_engine.engine import LatentFrame, Stream
from ardiff_engine.serve.errors import api_error
from ardiff_engine.serve.film import Form, Piece
from ardiff_engine.serve.order import Order
from ardiff_engine.serve.stage import Stage

Send = Callable[[dict[str, Any], bytes | None], Awaitable[None]]


@dataclass(slots=True)
class Event:
    """first_chunk: where it holds from. told: whether a chunk has named it."""

    id: str
    first_chunk: int
    told: bool = False


class LiveStream:
    """Frames go out in order, one piece after the other; a piece is a latent frame. While the reader does not
    take them, the engine pauses this stream alone.

    moving: held from taking frames to sending them, so that an edit falls between two pieces.
    """

    def __init__(self, stream: Stream, order: Order, kind: str, send: Send, stage: Stage) -> None:
        self.id = f"stream_{secrets.token_hex(8)}"
        self.stream, self.order, self.kind = stream, order, kind
        self.moving = asyncio.Lock()
        self._send, self._stage = send, stage
        self._opened = False
        self._unread: list[LatentFrame] = []
        # Frames that a fork shares with its origin and that its decoder has not seen yet.
        self._shared: list[LatentFrame] = []
        self._events: list[Event] = []
        self._pieces = 0

    async def fork(self, stream: Stream) -> LiveStream:
        """stream: forked off by the engine, with `moving` held since then."""
        other = LiveStream(stream, self.order, self.kind, self._send, self._stage)
        other._events = [Event(event.id, event.first_chunk, event.told) for event in self._events]
        try:
            await self._open()
            await asyncio.wrap_future(self._stage.fork(self.id, other.id))
        except BaseException:
            stream.cancel()
            self._stage.drop(other.id)
            raise
        other._opened = True
        self._unread += self.stream.take_ready()
        other._shared = [*self._shared, *self._unread]
        return other

    def steered(self, event: str, first_chunk: int) -> None:
        self._events.append(Event(event, first_chunk))

    async def rolled_back(self, chunk: int) -> None:
        """The present condition holds for what is made again. `moving` is held since the engine went back."""
        self._unread = [frame for frame in self._unread if frame.index < chunk]
        if self._opened:
            await asyncio.wrap_future(self._stage.rollback(self.id, chunk))
        for event in self._events:
            if event.first_chunk >= chunk:
                event.first_chunk, event.told = chunk, False

    @property
    def facts(self) -> dict[str, Any]:
        """For those who watch: the plan now, pages, progress."""
        stream = self.stream
        levels = stream.levels
        return {
            "state": stream.state,
            "plan": {"frames": list(levels), "levels": list(levels.values()), "steps": self.order.steps},
            "pages": stream.pages_held,
            "ticks": stream.ticks_done,
        }

    async def run(self) -> None:
        """Until the stream has ended and all of it is sent."""
        try:
            await self._open()
            await self._all()
        finally:
            self._stage.drop(self.id)

    async def _all(self) -> None:
        changes = self.stream.engine.changes
        while True:
            before = changes.count
            over = self.stream.done  # asked first: what is ready after that is all there is
            async with self.moving:
                self._unread += self.stream.take_ready()
                moved = bool(self._unread)
                while self._unread:
                    await self._piece(self._unread.pop(0))
            if moved:
                continue
            if over:
                break
            await changes.wait_async(before, self._moves)
        rest = await asyncio.wrap_future(self._stage.finish(self.id))
        if rest:
            await self._chunk(self._pieces, 0, 0, rest, 0.0)
        end: dict[str, Any] = {"type": "video.done", "stream_id": self.id, "status": self.stream.state}
        try:
            self.stream.raise_if_failed()
        except Exception as error:
            end |= api_error(error).body
        await self._send(end, None)

    async def _open(self) -> None:
        if not self._opened:
            self._opened = True
            form = Form(self.kind, self.order.fps, self.order.scale)
            await asyncio.wrap_future(self._stage.open(self.id, form))

    def _moves(self) -> bool:
        """Whether there is something to send."""
        return self.stream.frames_ready > 0 or self.stream.done or bool(self._unread)

    async def _piece(self, frame: LatentFrame) -> None:
        shared, self._shared = self._shared, []
        for earlier in shared:
            if earlier.index < frame.index:
                await self._pushed(earlier, shown=False)
        piece = await self._pushed(frame, shown=True)
        first = piece.first
        for count, data in piece.messages:
            await self._chunk(frame.index, first, count, data, frame.seconds)
            first += count

    async def _pushed(self, frame: LatentFrame, shown: bool) -> Piece:
        seen = None if self.order.frames is not None else frozenset(self.stream.latents)
        return await asyncio.wrap_future(self._stage.push(self.id, frame.index, frame.latent, seen, shown))

    async def _chunk(self, index: int, first: int, count: int, data: bytes, seconds: float) -> None:
        applied = [event for event in self._events if event.first_chunk <= index and not event.told]
        for event in applied:
            event.told = True
        self._pieces = index + 1
        message = {
            "type": "video.chunk_metadata",
            "stream_id": self.id,
            "chunk_index": index,
            "first_frame": first,
            "frames": count,
            "bytes": len(data),
            "seconds": round(seconds, 4),
            "applied_event_ids": [event.id for event in applied],
            **self.facts,
        }
        await self._send(message, data)
