# SPDX-License-Identifier: Apache-2.0
"""Traps that notice what a hostile file makes a process do: start a program, open another file, call a port.

Audit hooks see what Python does; these also see what a C library does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from pathlib import Path

PROGRAMS = (
    *("gs", "gswin32c", "gswin64c", "rungs", "convert", "magick", "ffmpeg", "ffprobe", "xdg-open"),
    *("sh", "bash", "dwebp", "djpeg", "cwebp", "file", "python", "python3", "touch", "curl", "wget"),
    *("ldconfig", "gcc", "nvcc"),
)
CANARIES = ("canary.txt", "canary.png", "canary.mp4", "canary.ts", "canary.npy", "canary.safetensors")
_IN_OPEN = 0x20
_IN_NONBLOCK = 0o4000
_EVENT_BYTES = 16


class Traps:
    """A context manager. `path`: a value for PATH whose programs only note that they ran. `files`: files that
    nobody may open. `port`: of 127.0.0.1, where nobody may connect; `sprung` tells what happened."""

    def __init__(self, folder: Path) -> None:
        self._marks = folder / "started"
        self._marks.mkdir(parents=True)
        programs = folder / "bin"
        programs.mkdir()
        for name in PROGRAMS:
            program = programs / name
            program.write_text(f"#!/bin/sh\necho >> '{self._marks / name}'\n")
            program.chmod(0o755)
        self.path = str(programs)
        canaries = folder / "canaries"
        canaries.mkdir()
        self.files = [canaries / name for name in CANARIES]
        for path in self.files:
            path.write_bytes(b"nobody may read this\n" * 8)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        libc = ctypes.CDLL(None, use_errno=True)
        self._watch = libc.inotify_init1(_IN_NONBLOCK)
        if self._watch < 0 or libc.inotify_add_watch(self._watch, os.fsencode(canaries), _IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def __enter__(self) -> Traps:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        os.close(self._watch)

    def sprung(self) -> list[str]:
        """What happened since the last call, in words."""
        found = []
        for mark in sorted(self._marks.iterdir()):
            found.append(f"started {mark.name}")
            mark.unlink()
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._socket.accept()
                connection.close()
                found.append("connected to a port")
        with contextlib.suppress(BlockingIOError):
            events = os.read(self._watch, 1 << 16)
            while events:
                length = int.from_bytes(events[12:_EVENT_BYTES], "little")
                name = events[_EVENT_BYTES : _EVENT_BYTES + length].rstrip(b"\0").decode()
                found.append(f"opened {name or 'the folder of the canaries'}")
                events = events[_EVENT_BYTES + length :]
        return found
