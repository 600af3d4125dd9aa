# SPDX-License-Identifier: Apache-2.0
"""What an engine tells of itself: its counts, and a record of each pass."""

from __future__ import annotations

from ardiff_engine.engine.feed import Feed
from ardiff_engine.engine.results import Results
from ardiff_engine.engine.runner import PassTimes, Run, Runner
from ardiff_engine.engine.scheduler import Scheduler
from ardiff_engine.engine.state import StreamState
from ardiff_engine.memory.page_manager import PageManager
from ardiff_engine.observe.records import PassRecord, StreamTick
from ardiff_engine.observe.stats import EngineStats


def engine_stats(
    scheduler: Scheduler,
    runner: Runner,
    results: Results,
    manager: PageManager,
    seconds: float,
    planning_seconds: float,
) -> EngineStats:
    """As `Engine.stats`; seconds: in steps so far, and the part of them that went into planning."""
    graphs, ended = runner.graphs.counts, scheduler.ended
    states = list(scheduler.streams.values())
    count = {s: sum(state.status == s for state in states) for s in ("running", "waiting", "suspended")}
    return EngineStats(
        streams_running=count["running"],
        streams_waiting=count["waiting"],
        streams_suspended=count["suspended"],
        streams_finished=ended["finished"],
        streams_cancelled=ended["cancelled"],
        streams_failed=ended["failed"],
        pages_free=manager.free,
        pages_held=manager.held,
        pages_promised=manager.total - manager.unpromised,
        pages_total=manager.total,
        passes=results.passes,
        cells=results.cells,
        updates=results.updates,
        frames=results.frames,
        seconds=seconds,
        planning_seconds=planning_seconds,
        cells_per_second=results.cells / seconds if seconds else 0.0,
        cells_per_pass=results.cells / results.passes if results.passes else 0.0,
        first_frame_seconds=results.first_frame_seconds,
        passes_retried=runner.retried,
        exact=all(state.exact for state in states),
        graphs_captured=graphs.captured,
        graph_replays=graphs.replays,
        eager_passes=graphs.eager,
        eager_reason=graphs.reason,
    )


def pass_records(
    run: Run, passes: int, began: float, planned: float, alive: list[StreamState], manager: PageManager
) -> list[PassRecord]:
    """Of what a turn came to. passes: of the engine, these included; began, planned: when planning them began
    and was done; alive: all streams that have not ended.

    A turn that was run again stream by stream is one pass.
    """
    work = [part for outcome in run.outcomes for part in outcome.work]
    fed = {state.number for state, _ in work}
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
        PassRecord(
            index=passes - len(times) + number,
            began=begins[number],
            ended=time.ended,
            plan_seconds=planned - began if number == 0 else 0.0,
            pack_seconds=time.pack,
            model_seconds=time.model,
            solver_seconds=time.solver,
            # What they fed in the last pass is known.
            streams=(
                *[stream_tick(state, feed.later(number + 1 - len(times))) for state, feed in work],
                *held,
            ),
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
    frames = feed.numbered(feed.planned.frames)
    updates = len(feed.planned.updated)
    commits = len(frames) - updates
    first, last = frames[0], frames[-1]
    return StreamTick(state.number, label, first, last, updates, commits, state.pages.held)
