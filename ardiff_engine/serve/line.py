# SPDX-License-Identifier: Apache-2.0
"""The way to one client, over one connection after the other if he asked for that at the start."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ardiff_engine.serve.errors import ApiError

MESSAGES, BYTES = 512, 4 << 20
"""That are kept for a client who comes back: at most, but always the last one."""


class Line:
    """socket: of now. kept: whether the last messages are kept, and sending waits while there is no
    connection; else WebSocketDisconnect is raised."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.kept = False
        self._sequence = 0
        self._recent: deque[tuple[int, str, bytes | None]] = deque()
        self._bytes = 0
        self._sending = asyncio.Lock()
        self._up = asyncio.Event()
        self._up.set()

    async def send(self, message: dict[str, Any], data: bytes | None) -> None:
        async with self._sending:
            self._sequence += 1
            text = json.dumps({**message, "sequence": self._sequence})
            if not self.kept:
                await self._out(text, data)
                return
            self._keep(text, data)
            if self._up.is_set():
                try:
                    await self._out(text, data)
                    return
                except WebSocketDisconnect:
                    self._up.clear()
            await self._up.wait()  # the next connection has begun with it

    def down(self) -> None:
        """Nothing goes out until `over`."""
        self._up.clear()

    def check(self, after: int) -> None:
        """ApiError: not all messages after number `after` are here any more."""
        oldest = self._recent[0][0] if self._recent else self._sequence + 1
        if not oldest - 1 <= after <= self._sequence:
            kept = f"{oldest - 1} to {self._sequence}"
            raise ApiError(409, "gone", "sequence", str(after), kept, "Start a new session.", "sequence")

    async def over(self, socket: WebSocket, after: int) -> None:
        """On to this connection, with all messages after number `after`. ApiError: see `check`.
        WebSocketDisconnect: the connection is gone."""
        self.check(after)
        self.socket = socket
        while rest := [entry for entry in self._recent if entry[0] > after]:
            after, text, data = rest[0]
            await self._out(text, data)
        self._up.set()

    async def _out(self, text: str, data: bytes | None) -> None:
        """WebSocketDisconnect: the client has gone, however the libraries below put it."""
        try:
            await self.socket.send_text(text)
            if data is not None:
                await self.socket.send_bytes(data)
        except (RuntimeError, OSError) as error:
            raise WebSocketDisconnect(1006) from error

    def _keep(self, text: str, data: bytes | None) -> None:
        self._recent.append((self._sequence, text, data))
        self._bytes += len(text) + len(data or b"")
        while len(self._recent) > 1 and (len(self._recent) > MESSAGES or self._bytes > BYTES):
            _, old, picture = self._recent.popleft()
            self._bytes -= len(old) + len(picture or b"")
