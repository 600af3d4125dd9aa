# SPDX-License-Identifier: Apache-2.0
"""A client of /v1/realtime/video, for tests."""

from __future__ import annotations

import io
import json
import socket as sockets
import struct
from typing import Any

import numpy as np
from helpers.server import ServerProcess
from helpers.waiting import PATIENCE
from PIL import Image
from websockets.sync import client

QUICK = {"num_inference_steps": 6, "lag": 2, "size": "16x16", "format": "webp"}


def connected(server: ServerProcess) -> Any:
    """A connection that no busy machine ends: it asks for no pings in time, and answers those of the server
    also while nobody reads."""
    return client.connect(
        server.socket, max_queue=None, open_timeout=PATIENCE, close_timeout=PATIENCE, ping_interval=None
    )


class Session:
    """A connection. frames: of each stream, the picture of every piece; applied: the events that it names.

    The server may be far ahead of what has been read. To do something to a stream that must not be over by
    then, ask for an endless one, and `leave`.
    """

    def __init__(self, server: ServerProcess, **wish: Any) -> None:
        self.socket = connected(server)
        self.frames: dict[str, dict[int, np.ndarray]] = {}
        self.applied: dict[str, dict[int, list[str]]] = {}
        self.sequence = 0
        self.send("session.start", **{**QUICK, **wish})
        self.created = self.until("session.created")
        self.stream = self.created["stream_id"]

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.socket.recv(timeout=PATIENCE))
        assert message["sequence"] == self.sequence + 1
        self.sequence += 1
        if message["type"] == "video.chunk_metadata":
            data = self.socket.recv(timeout=PATIENCE)
            assert len(data) == message["bytes"]
            stream, index = message["stream_id"], message["chunk_index"]
            self.frames.setdefault(stream, {})[index] = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
            self.applied.setdefault(stream, {})[index] = message["applied_event_ids"]
        return message

    def until(self, kind: str, stream: str | None = None) -> dict[str, Any]:
        while True:
            message = self.receive()
            if message["type"] == kind and stream in (None, message.get("stream_id")):
                return message
            assert message["type"] != "error", message

    def read(self, frames: int, stream: str | None = None) -> None:
        """Until there are so many of a stream, the first one if none is named."""
        name = self.stream if stream is None else stream
        while len(self.frames.get(name, ())) < frames:
            message = self.receive()
            assert message["type"] not in ("error", "video.done"), message

    def leave(self) -> None:
        """In order: its streams end."""
        self.send("session.stop")
        self.until("session.done")

    def broken_off(self) -> None:
        """As by a machine that goes without a word."""
        reset = struct.pack("ii", 1, 0)
        self.socket.socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, reset)
        self.socket.socket.close()

    def video(self, stream: str) -> np.ndarray:
        frames = self.frames[stream]
        return np.stack([frames[index] for index in sorted(frames)])
