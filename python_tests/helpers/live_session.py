# SPDX-License-Identifier: Apache-2.0
"""A client of /v1/realtime/video, for tests."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from helpers.server import ServerProcess
from helpers.waiting import PATIENCE
from PIL import Image

client = pytest.importorskip("websockets.sync.client")
QUICK = {"num_inference_steps": 6, "lag": 2, "size": "16x16", "format": "webp"}
PING = 15.0


class Session:
    """A connection. frames: of each stream, the picture of every piece; applied: the events that it names."""

    def __init__(self, server: ServerProcess, **wish: Any) -> None:
        self.socket = client.connect(server.socket, max_queue=4, open_timeout=PATIENCE, close_timeout=0.5)
        self.frames: dict[str, dict[int, np.ndarray]] = {}
        self.applied: dict[str, dict[int, list[str]]] = {}
        self.sequence = 0
        self.send("session.start", **{**QUICK, **wish})
        self.created = self.until("session.created")
        self.stream = self.created["stream_id"]

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._text())
        assert message["sequence"] == self.sequence + 1
        self.sequence += 1
        if message["type"] == "video.chunk_metadata":
            data = self.socket.recv(timeout=PATIENCE)
            assert len(data) == message["bytes"]
            stream, index = message["stream_id"], message["chunk_index"]
            self.frames.setdefault(stream, {})[index] = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
            self.applied.setdefault(stream, {})[index] = message["applied_event_ids"]
            if index % 16 == 15:
                self.send("session.ping")  # a slow machine may take longer than a silent client is kept
        return message

    def _text(self) -> str:
        """The next message, also where it takes longer than a silent client is kept."""
        for _ in range(round(PATIENCE / PING)):
            try:
                return str(self.socket.recv(timeout=PING))
            except TimeoutError:
                self.send("session.ping")
        raise TimeoutError(f"no message for {PATIENCE:.0f} s")

    def until(self, kind: str, stream: str | None = None) -> dict[str, Any]:
        while True:
            message = self.receive()
            if message["type"] == kind and stream in (None, message.get("stream_id")):
                return message
            assert message["type"] != "error", message

    def video(self, stream: str) -> np.ndarray:
        frames = self.frames[stream]
        return np.stack([frames[index] for index in sorted(frames)])
