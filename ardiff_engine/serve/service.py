# SPDX-License-Identifier: Apache-2.0
"""What all requests share: the model, its videos on disk, the live sessions, and the limits."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from ardiff_engine.engine import EngineStats
from ardiff_engine.serve.errors import busy, not_found
from ardiff_engine.serve.jobs import Jobs
from ardiff_engine.serve.limits import Limits
from ardiff_engine.serve.served_model import ServedModel
from ardiff_engine.serve.store import Store


class Session(Protocol):
    """A connection with live streams. stopping: set by the server when it ends."""

    stopping: asyncio.Event

    @property
    def owner(self) -> str: ...

    @property
    def count(self) -> int:
        """Streams that are not over."""


class Service:
    """From its making to `close`, the thread of the engine runs."""

    def __init__(self, model: ServedModel, data: Path, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.log = logging.getLogger("ardiff_engine.serve")
        self.store = Store(data)
        self.store.recover()
        self.sessions: set[Session] = set()
        self.callers = ThreadPoolExecutor(32, "ardiff-serve-call")
        self.encoders = ThreadPoolExecutor(2, "ardiff-serve-encode")
        self.jobs = Jobs(model, self.store, limits)
        self._running = model.engine.running()
        self._running.__enter__()

    def close(self) -> None:
        """Videos may finish for a while; then everything ends, and files are whole or absent."""
        self.jobs.close(self.limits.grace)
        self._running.__exit__(None, None, None)
        self.callers.shutdown(cancel_futures=True)
        self.encoders.shutdown(cancel_futures=True)
        self.store.close()

    def check_owner(self, owner: str) -> None:
        """ApiError where a key has as many videos and live streams as it may."""
        live = sum(session.count for session in self.sessions if session.owner == owner)
        if (now := live + self.jobs.running(owner)) >= self.limits.per_key:
            raise busy("videos of one key at a time", str(now), f"fewer than {self.limits.per_key}")

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.model.name:
            raise not_found("model", name)

    def stats(self, within: float) -> EngineStats | None:
        """Answered between two passes; None: no pass has ended for so long."""
        future = self.callers.submit(self.model.engine.stats)
        try:
            return future.result(within)
        except TimeoutError:
            return None
