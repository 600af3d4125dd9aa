# SPDX-License-Identifier: Apache-2.0
"""What one client, and all of them together, may ask of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """streams: that run at a time, each of the longest video. queue: videos that may wait beyond them.
    seconds, frames, steps: of one video. side: pixels of a picture's longer side. text: characters of a
    prompt. body: bytes of a request. message: bytes of one of a WebSocket. per_key: videos and live streams
    of one key at a time. stored: finished videos that are kept.
    start, idle, longest: seconds until a live session must have started, without a message of its client,
    and in all. resume: seconds that a resumable one waits for its client when the connection has broken.
    grace: seconds that a stop waits for running videos. ahead: finished pieces that may wait for a reader
    before his stream pauses.
    """

    streams: int = 8
    queue: int = 64
    seconds: float = 60.0
    frames: int = 1024
    steps: int = 1000
    side: int = 2048
    text: int = 4000
    body: int = 1 << 20
    message: int = 1 << 16
    per_key: int = 64
    stored: int = 1000
    start: float = 10.0
    idle: float = 60.0
    longest: float = 600.0
    resume: float = 15.0
    grace: float = 4.0
    ahead: int = 8
