# SPDX-License-Identifier: Apache-2.0
"""The WebSocket /v1/realtime/video: start a stream, watch it, steer, fork, roll back, pause, stop.

Text messages are JSON with a `type`; a binary message is the piece that the `video.chunk_metadata` before it
describes. When the connection ends, however it ends, its streams give their pages back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from ardiff_engine.engine import Stream
from ardiff_engine.serve.errors import ApiError, api_error, invalid, not_found
from ardiff_engine.serve.live import LiveStream
from ardiff_engine.serve.pictures_out import CODEC
from ardiff_engine.serve.service import Service
from ardiff_engine.serve.wish import read_wish

T = TypeVar("T")
NORMAL, GOING_AWAY, POLICY, TOO_LARGE = 1000, 1001, 1008, 1009
MOST_STREAMS = 16
"""Of one connection."""


class Realtime:
    """One connection."""

    def __init__(self, service: Service, socket: WebSocket, owner: str) -> None:
        self._service, self._socket, self._owner = service, socket, owner
        self._streams: dict[str, LiveStream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._sequence = 0
        self._first: LiveStream | None = None
        self.stopping = asyncio.Event()

    @property
    def owner(self) -> str:
        return self._owner

    @property
    def count(self) -> int:
        return sum(not live.stream.done for live in self._streams.values())

    async def serve(self) -> None:
        limits = self._service.limits
        loop = asyncio.get_running_loop()
        began = loop.time()
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            while True:
                left = began + limits.longest - loop.time()
                wait = min(limits.start if self._first is None else limits.idle, left)
                receive = asyncio.ensure_future(self._socket.receive())
                try:
                    await asyncio.wait(
                        {receive, stop}, timeout=max(0, wait), return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    if not receive.done():
                        receive.cancel()
                if stop.done():
                    await self._end("server_stops", "the server stops", GOING_AWAY)
                    return
                if not receive.done() or receive.cancelled():
                    what = "this session is over" if left <= wait else "no message of the client for too long"
                    await self._end("timeout", f"{what}, after {wait:.0f} s", POLICY)
                    return
                message = receive.result()
                if message["type"] == "websocket.disconnect":
                    return
                if await self._answered(message):
                    return
        except (WebSocketDisconnect, RuntimeError, OSError):
            return  # the client has gone while something was sent
        finally:
            stop.cancel()
            for live in self._streams.values():
                live.stream.cancel()
            for task in list(self._tasks):
                task.cancel()

    # --- messages

    async def _answered(self, received: Any) -> bool:
        """Whether that was the last one."""
        event: Any = None
        try:
            text = received.get("text")
            if text is None or len(text) > self._service.limits.message:
                got = "bytes" if text is None else f"{len(text)} characters"
                raise invalid(
                    "a message", got, f"JSON of at most {self._service.limits.message} characters", ""
                )
            values = _parsed(text)
            event = values.pop("event_id", None)
            if event is not None and not (isinstance(event, str) and len(event) <= 100):
                event, got = None, event
                raise invalid("event_id", got, "a text of at most 100 characters", "Change it.", "event_id")
            kind = values.pop("type", None)
            if kind == "session.stop":
                await self._end(None, "", NORMAL)
                return True
            act = ACTS.get(kind) if isinstance(kind, str) else None
            if act is None:
                raise invalid("type", kind, ", ".join([*ACTS, "session.stop"]), "", "type")
            answer = await act(self, event, values)
            await self._send({**answer, **({} if event is None else {"event_id": event})}, None)
        except (WebSocketDisconnect, asyncio.CancelledError):
            raise
        except Exception as error:
            found = api_error(error)
            if found.status == 500:
                self._service.log.exception("a message of a live session failed")
            body = {"type": "error", **found.body, **({} if event is None else {"event_id": event})}
            await self._send(body, None)
        return False

    async def _start(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        if self._first is not None:
            raise invalid(
                "session.start", "a second one", "one for each connection", "Open another connection."
            )
        wish = read_wish(values, self._service.limits, live=True)
        self._service.check_model(wish.model)
        self._service.check_owner(self._owner)
        order = await self._engine(lambda: self._service.model.order(wish))
        stream = await self._opened(lambda: self._service.model.engine.submit(order.request))
        live = LiveStream(stream, order, wish.format, self._send, self._service.encoders)
        self._first = live
        await self._send({"type": "video.start", **self._described(live)}, None)
        self._watch(live)
        return {"type": "session.created", "session_id": live.id, "stream_id": live.id}

    async def _interaction(self, event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        live, wanted = self._named(values, {"event", "transition_chunks"}), values.get("event")
        if not isinstance(wanted, dict):
            raise invalid("event", wanted, 'an object such as {"prompt": "a dog"}', "", "event")
        condition, effect = await self._engine(lambda: self._service.model.steered(wanted))
        receipt = await self._engine(lambda: live.stream.set_condition(condition, effect=effect))
        if event is not None:
            live.steered(event, receipt.first_frame)
        return {
            "type": "session.interaction.queued",
            "stream_id": live.id,
            "effect": receipt.effect,
            "first_chunk": receipt.first_frame,
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
            other = live.fork(await self._opened(lambda: live.stream.fork(seed=seed)))
        await self._send({"type": "video.start", **self._described(other), "forked_from": live.id}, None)
        self._watch(other)
        return {"type": "session.forked", "stream_id": other.id, "forked_from": live.id}

    async def _rollback(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        live, chunk = self._named(values, {"chunk_index"}), values.get("chunk_index")
        if isinstance(chunk, bool) or not isinstance(chunk, int):
            raise invalid("chunk_index", chunk, "the number of a piece", "", "chunk_index")
        async with live.moving:
            await self._engine(lambda: live.stream.rollback(chunk))
            live.rolled_back(chunk)
        return {"type": "session.rolled_back", "stream_id": live.id, "chunk_index": chunk}

    async def _suspend(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        live = self._named(values, set())
        await self._engine(live.stream.suspend)
        return {"type": "session.suspended", "stream_id": live.id, "pages": live.stream.pages_held}

    async def _resume(self, _event: str | None, values: dict[str, Any]) -> dict[str, Any]:
        live = self._named(values, set())
        await self._engine(live.stream.resume)
        return {"type": "session.resumed", "stream_id": live.id}

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

    def _watch(self, live: LiveStream) -> None:
        self._streams[live.id] = live
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

    async def _send(self, message: dict[str, Any], data: bytes | None) -> None:
        """WebSocketDisconnect: the client has gone, however the libraries below put it."""
        async with self._sending:
            self._sequence += 1
            try:
                await self._socket.send_text(json.dumps({**message, "sequence": self._sequence}))
                if data is not None:
                    await self._socket.send_bytes(data)
            except (RuntimeError, OSError) as error:
                raise WebSocketDisconnect(1006) from error

    async def _end(self, code: str | None, why: str, close: int) -> None:
        """The last words must not wait for a reader who does not read."""
        for live in self._streams.values():
            live.stream.cancel()
        for task in list(self._tasks):
            task.cancel()
        body = {"type": "session.done"}
        if code is not None:
            body |= ApiError(408 if code == "timeout" else 503, code, why).body
        try:
            async with asyncio.timeout(1.0):
                await self._send(body, None)
                await self._socket.close(close)
        except TimeoutError:
            pass

    async def _engine(self, act: Callable[[], T]) -> T:
        """In a thread: it may have to wait for the end of a pass."""
        return await asyncio.get_running_loop().run_in_executor(self._service.callers, act)

    async def _opened(self, act: Callable[[], Stream]) -> Stream:
        """As `_engine`; a stream that comes when nobody waits for it any more is cancelled."""
        future = asyncio.get_running_loop().run_in_executor(self._service.callers, act)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: None if done.exception() else done.result().cancel())
            raise


ACTS = {
    "session.start": Realtime._start,
    "session.interaction": Realtime._interaction,
    "session.fork": Realtime._fork,
    "session.rollback": Realtime._rollback,
    "session.suspend": Realtime._suspend,
    "session.resume": Realtime._resume,
    "session.ping": Realtime._ping,
}


def _parsed(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("a message", text[:60], "JSON", "", None) from None
    if not isinstance(values, dict):
        raise invalid("a message", text[:60], "a JSON object with a type", "", None)
    return values
