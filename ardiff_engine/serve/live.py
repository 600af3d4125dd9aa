# SPDX-License-Identifier: Apache-2.0
"""One stream that somebody watches: its frames on their way to him, and the events that have steered it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from ardiff_engine.engine import LatentFrame, Stream
from ardiff_engine.serve.errors import api_error
from ardiff_engine.serve.pictures_out import PicturesOut
from ardiff_engine.serve.served_model import Order

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

    def __init__(self, stream: Stream, order: Order, kind: str, send: Send, encoders: Executor) -> None:
        self.id = f"stream_{secrets.token_hex(8)}"
        self.stream, self.order, self.kind = stream, order, kind
        self.moving = asyncio.Lock()
        self._send, self._encoders = send, encoders
        self._out = PicturesOut(kind, order.fps, order.scale)
        self._events: list[Event] = []
        self._pieces = 0

    def fork(self, stream: Stream) -> LiveStream:
        other = LiveStream(stream, self.order, self.kind, self._send, self._encoders)
        other._events = [Event(event.id, event.first_chunk, event.told) for event in self._events]
        return other

    def steered(self, event: str, first_chunk: int) -> None:
        self._events.append(Event(event, first_chunk))

    def rolled_back(self, chunk: int) -> None:
        """The present condition holds for what is made again."""
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
        changes = self.stream.engine.changes
        while True:
            before = changes.count
            over = self.stream.done  # asked first: what is ready after that is all there is
            async with self.moving:
                frames = self.stream.take_ready()
                for frame in frames:
                    await self._piece(frame)
            if frames:
                continue
            if over:
                break
            await changes.wait_async(before)
        rest = await self._encoded(self._out.rest)
        if rest:
            await self._chunk(self._pieces, 0, 0, rest, 0.0)
        end: dict[str, Any] = {"type": "video.done", "stream_id": self.id, "status": self.stream.state}
        try:
            self.stream.raise_if_failed()
        except Exception as error:
            end |= api_error(error).body
        await self._send(end, None)

    async def _piece(self, frame: LatentFrame) -> None:
        pictures = [picture.image.numpy() for picture in frame.pictures]
        first = frame.pictures[0].index if pictures else 0
        for count, data in await self._encoded(self._out.messages, pictures):
            await self._chunk(frame.index, first, count, data, frame.seconds)
            first += count

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

    async def _encoded(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._encoders, work, *arguments)
