# SPDX-License-Identifier: Apache-2.0
"""The life of a live session: one connection, or one after the other if the client asked for that.

When it ends, however it ends, its streams give their pages back.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ardiff_engine.serve.errors import ApiError
from ardiff_engine.serve.line import Line
from ardiff_engine.serve.serving import Serving

NORMAL, GOING_AWAY, POLICY = 1000, 1001, 1008
LEAVES, BROKEN, FLOODS = "leaves", "broken", "sends and does not read"
UNANSWERED, UNREAD_SECONDS = 64, 10.0
"""Messages of a client that wait for their answer, and how long that may stay so."""
LAST_WORDS_SECONDS = 1.0
"""In which a client that is sent away takes why. One that has said stop reads on to the end of what is on its
way, and has UNREAD_SECONDS."""


class Connected(ABC):
    """started: whether the client has asked for a stream. heir: a session that this connection goes on with,
    and the last message that its client has. following: the connections that this session goes on over.
    stopping: set by the server when it ends. over: nothing more goes over this connection."""

    def __init__(self, service: Serving, socket: WebSocket, owner: str) -> None:
        self._service, self._line, self._owner = service, Line(socket), owner
        self._tasks: set[asyncio.Task[None]] = set()
        self._inbox: asyncio.Queue[Any] = asyncio.Queue(UNANSWERED)
        self._began = self._heard = 0.0
        self._started = False
        self._heir: tuple[Connected, int] | None = None
        self._carrier: Connected = self
        self._following: asyncio.Queue[tuple[Connected, int]] = asyncio.Queue()
        self.stopping, self.over = asyncio.Event(), asyncio.Event()

    @abstractmethod
    async def _answered(self, received: Any) -> bool:
        """Whether that was the last message."""

    @abstractmethod
    def _cancel(self) -> None:
        """Its streams: without waiting, and also when they have ended."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Streams that are not over."""

    @property
    def owner(self) -> str:
        return self._owner

    async def serve(self) -> None:
        """Until the client leaves or says stop, breaks a limit, or the server stops."""
        self._began = asyncio.get_running_loop().time()
        try:
            while await self._served():
                pass
            if self._heir is not None:
                await self._handed_over(*self._heir)
        finally:
            self.over.set()
            self._line.kept = False  # nobody comes back: what is still sent must not wait for him
            self._cancel()
            for task in list(self._tasks):
                task.cancel()

    async def _served(self) -> bool:
        """Over one connection. True: it broke, and the client has come back with another one."""
        reading = asyncio.ensure_future(self._read())
        answering = asyncio.ensure_future(self._answer())
        stop = asyncio.ensure_future(self.stopping.wait())
        moved = asyncio.ensure_future(self._following.get())
        self._heard = asyncio.get_running_loop().time()
        own = {reading, answering, stop, moved}
        try:
            while not any(task.done() for task in own):
                left, why = self._left()
                if left <= 0:
                    await self._end("timeout", why, POLICY)
                    return False
                await asyncio.wait(own, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                await self._end("server_stops", "the server stops", GOING_AWAY)
                return False
            if answering.done():
                answering.result()
                return False
            if reading.done() and (ended := reading.result()) != BROKEN:
                if ended == FLOODS:
                    why = f"{UNANSWERED} messages wait and no answer is taken for {UNREAD_SECONDS:.0f} s"
                    await self._end("too_many_messages", why, POLICY)
                return False
        except (WebSocketDisconnect, RuntimeError, OSError):
            pass  # the client has gone while something was sent
        finally:
            for task in own:
                task.cancel()
        return await self._came_back(moved.result() if moved.done() and not moved.cancelled() else None)

    async def _came_back(self, by: tuple[Connected, int] | None) -> bool:
        """Whether the client goes on within the time, over another connection."""
        if not self._line.kept:
            return False
        self._line.down()
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            async with asyncio.timeout(self._service.limits.resume):
                while by is None or not await self._taken(*by):
                    coming = asyncio.ensure_future(self._following.get())
                    try:
                        await asyncio.wait({coming, stop}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        coming.cancel()
                    if stop.done():
                        return False
                    by = coming.result()
        except TimeoutError:
            return False
        finally:
            stop.cancel()
        return True

    async def _taken(self, other: Connected, after: int) -> bool:
        """Whether it could go on over that connection."""
        try:
            await self._line.over(other._line.socket, after)
        except WebSocketDisconnect:
            return False
        except ApiError as error:
            await other._end(error.code, error.message, POLICY)
            other.over.set()
            return False
        if self._carrier is not self:
            self._carrier.over.set()
        self._carrier, self._inbox = other, other._inbox
        return True

    async def _handed_over(self, session: Connected, after: int) -> None:
        """This connection is the session's from now on, until that is over."""
        session._following.put_nowait((self, after))
        ends = [asyncio.ensure_future(event.wait()) for event in (session.over, self.over)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()

    def _left(self) -> tuple[float, str]:
        """Seconds until the next limit, and what is said then."""
        limits, now = self._service.limits, asyncio.get_running_loop().time()
        most = limits.idle if self._started else limits.start
        silence = f"no message of the client for too long, after {most:.0f} s"
        session = f"this session is over, after {limits.longest:.0f} s"
        return min((self._heard + most - now, silence), (self._began + limits.longest - now, session))

    async def _read(self) -> str:
        """How the client ends. Every message is taken at once, also while another is answered: uvicorn
        answers no ping, and hears no answer to its own, while a message is not taken."""
        socket = self._line.socket
        while (message := await socket.receive())["type"] != "websocket.disconnect":
            self._heard = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(UNREAD_SECONDS):
                    await self._inbox.put(message)
            except TimeoutError:
                return FLOODS
        return LEAVES if message.get("code") in (NORMAL, GOING_AWAY) else BROKEN

    async def _answer(self) -> None:
        while not await self._answered(await self._inbox.get()):
            pass

    async def _end(self, code: str | None, why: str, close: int) -> None:
        """The last words must not wait for a reader who does not read."""
        self._cancel()
        for task in list(self._tasks):
            task.cancel()
        self._line.kept = False
        body = {"type": "session.done"}
        if code is not None:
            body |= ApiError(408 if code == "timeout" else 503, code, why).body
        try:
            async with asyncio.timeout(UNREAD_SECONDS if close == NORMAL else LAST_WORDS_SECONDS):
                await self._line.send(body, None)
                await self._line.socket.close(close)
        except (TimeoutError, WebSocketDisconnect):
            pass
