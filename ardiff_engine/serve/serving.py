# SPDX-License-Identifier: Apache-2.0
"""What the web side needs of whatever makes the videos, be it one engine or several: files on disk, limits,
sessions."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from ardiff_engine.serve.errors import busy, not_found
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.store import Job, Store
from ardiff_engine.serve.wish import Wish


class Session(Protocol):
    """A connection with live streams. stopping: set by the server when it ends."""

    stopping: asyncio.Event

    @property
    def owner(self) -> str: ...

    @property
    def count(self) -> int:
        """Streams that are not over."""

    async def serve(self) -> None:
        """Until it is over."""


class Making(Protocol):
    """A video that is being made. ended: done when its row and file are in their last state."""

    ended: Future[None]

    @property
    def progress(self) -> int:
        """In per cent, below 100 until the file is whole."""

    @property
    def started(self) -> bool:
        """Whether a pass has run it."""


class Makers(Protocol):
    """Any thread may call it."""

    def create(self, wish: Wish, owner: str, awaited: bool = False) -> Job:
        """Accepted, or refused with nothing changed. awaited: of no use once the connection is gone."""

    def live(self, job: str) -> Making | None: ...

    def remove(self, job: str) -> None:
        """Its pages are given back, then its file and its record are gone."""

    def running(self, owner: str) -> int: ...

    @property
    def count(self) -> int: ...


class Serving(ABC):
    """name: of the model, as clients call it. takes, actions: as `ServedModel` has them. jobs: its videos."""

    jobs: Makers
    takes: tuple[str, ...]
    actions: tuple[str, ...]

    def __init__(self, name: str, data: Path, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.log = logging.getLogger("ardiff_engine.serve")
        self.store = Store(data)
        self.sessions: set[Session] = set()
        self.callers = ThreadPoolExecutor(32, "ardiff-serve-call")

    @abstractmethod
    def ready(self, within: float) -> dict[str, Any] | None:
        """What runs; None: nothing has answered for so many seconds."""

    @abstractmethod
    def register(self, registry: CollectorRegistry) -> object:
        """Its metrics, which last as long as what is returned."""

    @abstractmethod
    def close(self) -> None:
        """Videos may finish for a while; then everything ends, and files are whole or absent."""

    def check_owner(self, owner: str) -> None:
        """ApiError where a key has as many videos and live streams as it may."""
        live = sum(session.count for session in self.sessions if session.owner == owner)
        if (now := live + self.jobs.running(owner)) >= self.limits.per_key:
            raise busy("videos of one key at a time", str(now), f"fewer than {self.limits.per_key}")

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise not_found("model", name)
