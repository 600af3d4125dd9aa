# SPDX-License-Identifier: Apache-2.0
"""What the engine did, pass by pass: a bounded record that can be written as a trace or drawn."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from os import PathLike

from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.files import check_writable
from ardiff_engine.observe import chrome_trace, pages_picture
from ardiff_engine.observe.records import PassRecord

CAPACITY = 20_000
"""Passes that a recorder keeps; eight streams make that about 46 MB."""


class Recorder:
    """Keeps the last `capacity` passes and counts the older ones that had to go. Any thread may read it."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise ConfigError(
                explain("Recorder.capacity", got=capacity, expected=">= 1", fix="Keep at least one pass.")
            )
        self._ring: deque[PassRecord] = deque(maxlen=capacity)
        self._added = 0
        self._lock = threading.Lock()

    def add(self, record: PassRecord) -> None:
        """The next pass; the oldest one leaves if there is no room."""
        with self._lock:
            self._ring.append(record)
            self._added += 1

    def extend(self, records: list[PassRecord]) -> None:
        for record in records:
            self.add(record)

    @property
    def dropped(self) -> int:
        """Passes that were recorded and are no longer kept."""
        with self._lock:
            return self._added - len(self._ring)

    def records(self) -> tuple[PassRecord, ...]:
        """The passes that are kept, oldest first."""
        with self._lock:
            return tuple(self._ring)

    @contextlib.contextmanager
    def written_to(self, path: str | PathLike[str]) -> Iterator[Recorder]:
        """Write a Chrome trace when the block ends, also by an error.

        CheckpointError: a path that cannot be written, before the block begins.
        """
        check_writable(path)
        try:
            yield self
        finally:
            self.write_chrome_trace(path)

    def write_chrome_trace(self, path: str | PathLike[str]) -> None:
        """Write the passes in the trace event format, which ui.perfetto.dev and chrome://tracing open.

        The file appears whole or not at all. CheckpointError: a disk that refuses.
        """
        chrome_trace.write(self.records(), path, dropped=self.dropped)

    def plot_pages(self, path: str | PathLike[str]) -> None:
        """Write a PNG of the pages over time: stacked by stream, with lines for all held and for the pool.

        The file appears whole or not at all; missing folders are made.
        ConfigError: nothing was recorded. MediaError: a name that does not end in .png, a disk that refuses.
        """
        pages_picture.draw(self.records(), path, dropped=self.dropped)
