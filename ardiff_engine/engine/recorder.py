# SPDX-License-Identifier: Apache-2.0
"""What the engine did, tick by tick: a bounded record that can be written as a trace or drawn."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from os import PathLike

from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.runner import PassTimes, Run
from ardiff_engine.engine.state import StreamState
from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.memory.page_manager import PageManager

CAPACITY = 20_000
"""Ticks that a recorder keeps; eight streams make that about 46 MB."""


@dataclass(frozen=True, slots=True)
class StreamTick:
    """One stream's part of a tick: frames it fed (first to last), cells of each kind, pages it holds then.

    A stream that holds pages and was not fed is listed with no updates and no commits.
    """

    stream: int
    label: str
    first_frame: int
    last_frame: int
    updates: int
    commits: int
    pages: int

    @property
    def fed(self) -> bool:
        return self.updates + self.commits > 0


@dataclass(frozen=True, slots=True)
class TickRecord:
    """One pass of the engine. began, ended: time.perf_counter(). The phases follow each other from `began`
    on; what is left until `ended` is handing out. pages_held: of the pool, after the pass.
    """

    index: int
    began: float
    ended: float
    plan_seconds: float
    pack_seconds: float
    model_seconds: float
    solver_seconds: float
    streams: tuple[StreamTick, ...]
    pages_held: int
    pages_total: int


def pass_records(
    run: Run, passes: int, began: float, planned: float, alive: list[StreamState], manager: PageManager
) -> list[TickRecord]:
    """Of what a turn came to. passes: of the engine, these included; began, planned: when planning them began
    and was done; alive: all streams that have not ended.

    A turn that was run again stream by stream is one pass.
    """
    work = [part for outcome in run.outcomes for part in outcome.work]
    fed = {state.number: stream_tick(state, feed) for state, feed in work}
    held = [stream_tick(state, None) for state in alive if state.number not in fed and state.pages.held]
    times = run.times
    if len(run.outcomes) != 1:
        times = [
            PassTimes(
                began,
                sum(time.pack for time in times),
                sum(time.model for time in times),
                sum(time.solver for time in times),
                times[-1].ended if times else planned,
            )
        ]
    begins = [began, *(time.ended for time in times)]
    return [
        TickRecord(
            index=passes - len(times) + number,
            began=begins[number],
            ended=time.ended,
            plan_seconds=planned - began if number == 0 else 0.0,
            pack_seconds=time.pack,
            model_seconds=time.model,
            solver_seconds=time.solver,
            streams=(*fed.values(), *held),
            pages_held=manager.held,
            pages_total=manager.total,
        )
        for number, time in enumerate(times)
    ]


def stream_tick(state: StreamState, feed: Feed | None) -> StreamTick:
    """What a tick did for a stream; feed: None if it was not part of it. Keeps no reference to either."""
    label = f"(seed {state.request.seed}, {state.feeder.plan.rule})"
    if feed is None:
        return StreamTick(state.number, label, 0, 0, 0, 0, state.pages.held)
    frames = feed.roster.frames
    updates = len(feed.roster.updated)
    commits = len(frames) - updates
    first, last = frames[0], frames[-1]
    return StreamTick(state.number, label, first, last, updates, commits, state.pages.held)


class Recorder:
    """Keeps the last `capacity` ticks and counts the older ones that had to go. Any thread may read it."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise ConfigError(
                explain("Recorder.capacity", got=capacity, expected=">= 1", fix="Keep at least one tick.")
            )
        self._ring: deque[TickRecord] = deque(maxlen=capacity)
        self._added = 0
        self._lock = threading.Lock()

    def add(self, record: TickRecord) -> None:
        """The next tick; the oldest one leaves if there is no room."""
        with self._lock:
            self._ring.append(record)
            self._added += 1

    def extend(self, records: list[TickRecord]) -> None:
        for record in records:
            self.add(record)

    @property
    def dropped(self) -> int:
        """Ticks that were recorded and are no longer kept."""
        with self._lock:
            return self._added - len(self._ring)

    def records(self) -> tuple[TickRecord, ...]:
        """The ticks that are kept, oldest first."""
        with self._lock:
            return tuple(self._ring)

    def write_chrome_trace(self, path: str | PathLike[str]) -> None:
        """Write the ticks in the trace event format, which ui.perfetto.dev and chrome://tracing open.

        The file appears whole or not at all. CheckpointError: a disk that refuses.
        """
        from ardiff_engine.engine.chrome_trace import write

        write(self.records(), path, dropped=self.dropped)

    def plot_pages(self, path: str | PathLike[str]) -> None:
        """Write a PNG of the pages over time: stacked by stream, with lines for all held and for the pool.

        The file appears whole or not at all; missing folders are made.
        ConfigError: nothing was recorded. MediaError: a name that does not end in .png, a disk that refuses.
        """
        from ardiff_engine.engine.pages_picture import draw

        draw(self.records(), path, dropped=self.dropped)
