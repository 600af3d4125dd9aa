# SPDX-License-Identifier: Apache-2.0
"""The WebSocket /v1/realtime/video: start a stream, watch it, steer, fork, roll back, pause, stop.

Text messages are JSON with a `type`; a binary message is the piece that the `video.chunk_metadata` before it
describes. When the connection ends, however it ends, its streams give their pages back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from ardiff_engine.engine import Stream
from ardiff_engine.errors import ConfigError, ForgottenError
from ardiff_engine.models.spec import Size
from ardiff_engine.serve.conversation import Conversation
from ardiff_engine.serve.errors import LONGEST, ApiError, api_error, invalid, not_found
from ardiff_engine.serve.live import LiveStream
from ardiff_engine.serve.order import Order
from ardiff_engine.serve.pictures_out import CODEC
from ardiff_engine.serve.service import Service
from ardiff_engine.serve.wish import Wish

T = TypeVar("T")
MOST_STREAMS = 16
"""Of one connection."""
KEEPS_FEW = "A stream that is started with num_frames keeps all its pieces."


class Realtime(Conversation):
    """Answers what clients say."""

    def __init__(self, service: Service, socket: WebSocket, owner: str) -> None:
        super().__init__(service, socket, owner)
        self._service: Service = service
        self._streams: dict[str, LiveStream] = {}
        self._first: LiveStream | None = None

    @property
    def count(self) -> int:
        return sum(not live.stream.done for live in self._streams.values())

    def _cancel(self) -> None:
        for live in self._streams.values():
            live.stream.cancel()

    # --- messages

    async def _act(self, kind: str, event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        acts = {
            "session.start": self._start,
            "session.interaction": self._interaction,
            "session.fork": self._fork,
            "session.rollback": self._rollback,
            "session.suspend": self._suspend,
            "session.resume": self._resume,
            "session.cancel": self._end_one,
            "session.ping": self._ping,
        }
        return await acts[kind](event, values)

    async def _start(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        wish, kept = self._asked(values)
        order = await self._engine(lambda: self._order(wish))
        engine, request = self._service.model.engine, order.request
        stream = await self._opened(request.size, lambda: engine.submit(request))
        live = self._first = LiveStream(stream, order, wish.format, self._send, self._service.stage)
        self.opened = True
        await self._shown(live, {})
        answer: dict[str, Any] = {"type": "session.created", "session_id": live.id, "stream_id": live.id}
        return answer | (self._may_come_back() if kept else {})

    def _order(self, wish: Wish) -> Order:
        """Of a session.start."""
        return self._service.model.order(wish)

    async def _interaction(self, event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        live, wanted = self._named(values, {"event", "transition_chunks"}), values.get("event")
        if not isinstance(wanted, dict):
            raise invalid("event", wanted, 'an object such as {"prompt": "a dog"}', "", "event")
        change = await self._engine(lambda: self._service.model.steered(wanted))
        receipt = await self._engine(lambda: change.of(live.stream))
        if event is not None:
            live.steered(event, receipt.first_frame)
        return {
            "type": "session.interaction.queued",
            "stream_id": live.id,
            "effect": receipt.effect,
            "first_chunk": receipt.first_frame,
            "tick": receipt.tick,
            "recommitted": list(receipt.recommitted),
            "forgotten": [receipt.forgotten.start, receipt.forgotten.stop],
        }

    async def _fork(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        live, seed = self._named(values, {"seed"}), values.get("seed")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise invalid("seed", seed, "a whole number", "Leave it out for the same noise.", "seed")
        if len(self._streams) >= MOST_STREAMS:
            raise invalid("session.fork", f"{len(self._streams)} streams", f"at most {MOST_STREAMS}", "")
        self._service.check_owner(self._owner)
        async with live.moving:
            other = await live.fork(
                await self._opened(live.order.request.size, lambda: live.stream.fork(seed=seed))
            )
        await self._shown(other, {"forked_from": live.id})
        return {"type": "session.forked", "stream_id": other.id, "forked_from": live.id}

    async def _rollback(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        live, chunk = self._named(values, {"chunk_index"}), values.get("chunk_index")
        if isinstance(chunk, bool) or not isinstance(chunk, int):
            raise invalid("chunk_index", chunk, "the number of a piece", "", "chunk_index")
        async with live.moving:
            try:
                await self._engine(lambda: live.stream.rollback(chunk))
            except ConfigError as error:
                fix = KEEPS_FEW if isinstance(error, ForgottenError) else ""
                said = str(error)[:LONGEST]
                raise ApiError(400, "invalid_value", said, fix=fix, param="chunk_index") from None
            await live.rolled_back(chunk)
        return {"type": "session.rolled_back", "stream_id": live.id, "chunk_index": chunk}

    async def _suspend(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        live = self._named(values, set())
        await self._engine(live.stream.suspend)
        return {"type": "session.suspended", "stream_id": live.id, "pages": live.stream.pages_held}

    async def _resume(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        live = self._named(values, set())
        await self._engine(live.stream.resume)
        return {"type": "session.resumed", "stream_id": live.id}

    async def _end_one(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        """The others go on. No later message finds it."""
        live = self._named(values, set())
        live.stream.cancel()
        del self._streams[live.id]
        return {"type": "session.cancelled", "stream_id": live.id}

    async def _ping(self, _event: str | None, _values: dict[str, Any]) -> dict[str, Any]:
        facts = [{"stream_id": live.id, **live.facts} for live in self._streams.values()]
        return {"type": "session.pong", "streams": facts}

    # --- parts

    def _named(self, values: dict[str, Any], fields: set[str]) -> LiveStream:
        """The stream that a message is about: the first one, if it names none."""
        for name in values:
            if name not in fields | {"stream_id"}:
                raise invalid(
                    "an unknown field", name, ", ".join(sorted(fields | {"stream_id"})), "", name[:80]
                )
        if self._first is None:
            raise invalid("the first message", "another one", "session.start", "Start a stream first.")
        name = values.get("stream_id", self._first.id)
        live = self._streams.get(name) if isinstance(name, str) else None
        if live is None:
            raise not_found("stream", name)
        return live

    def _described(self, live: LiveStream) -> dict[str, Any]:
        order = live.order
        return {
            "session_id": live.id if self._first is None else self._first.id,
            "stream_id": live.id,
            "model": self._service.model.name,
            "size": f"{order.size[0]}x{order.size[1]}",
            "fps": order.fps,
            "num_frames": order.frames,
            "steps": order.steps,
            "seed": live.stream.request.seed,
            "format": live.kind,
            "mime": CODEC if live.kind == "mp4" else f"image/{live.kind}",
        }

    async def _shown(self, live: LiveStream, more: dict[str, Any]) -> None:
        """It is this connection's from now on, also where the client has gone and cannot be told."""
        self._streams[live.id] = live
        await self._send({"type": "video.start", **self._described(live), **more}, None)
        task = asyncio.ensure_future(self._sent(live))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sent(self, live: LiveStream) -> None:
        try:
            await live.run()
        except WebSocketDisconnect:
            live.stream.cancel()
        except Exception as error:
            live.stream.cancel()
            self._service.log.exception("a live stream failed")
            await self._send({"type": "error", "stream_id": live.id, **api_error(error).body}, None)

    async def _engine(self, act: Callable[[], T]) -> T:
        """In a thread: it may have to wait for the end of a pass."""
        return await asyncio.get_running_loop().run_in_executor(self._service.callers, act)

    async def _opened(self, size: Size | None, act: Callable[[], Stream]) -> Stream:
        """As `_engine`, with room for a decoder of frames of that size; a stream that comes when nobody waits
        for it any more is cancelled."""
        future = self._service.callers.submit(self._service.model.room.opened, size, act)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_left_behind)
            raise


def _left_behind(future: Future[Stream]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().cancel()
