# SPDX-License-Identifier: Apache-2.0
"""What `Engine.stats()` reports."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class EngineStats:
    """exact: outputs of all live streams equal the plain algorithm of their memory policy.

    Seconds are wall time inside `step`; planning_seconds is the part before and after the network: plan,
    pages, packing. streams_finished, _cancelled and _failed count since the engine was built; cancelled
    includes dropped handles.
    passes_retried: passes that raised and were run again stream by stream, or after freeing workspace.
    graphs_captured, graph_replays, eager_passes: passes recorded as CUDA graphs, those that repeated one, and
        passes that ran kernel by kernel; eager_reason: why the last of those did, None if none has.
    """

    streams_running: int
    streams_waiting: int
    streams_suspended: int
    streams_finished: int
    streams_cancelled: int
    streams_failed: int
    pages_free: int
    pages_held: int
    pages_promised: int
    pages_total: int
    passes: int
    cells: int
    updates: int
    frames: int
    seconds: float
    planning_seconds: float
    cells_per_second: float
    cells_per_pass: float
    first_frame_seconds: float | None
    passes_retried: int
    exact: bool
    graphs_captured: int
    graph_replays: int
    eager_passes: int
    eager_reason: str | None

    def since(self, before: EngineStats) -> EngineStats:
        """What was counted after `before` was taken, with the pages and streams of now. first_frame_seconds
        stays: only the engine's first stream has it."""
        counts = {name: getattr(self, name) - getattr(before, name) for name in _COUNTS}
        seconds, passes = counts["seconds"], counts["passes"]
        return replace(
            self,
            cells_per_second=counts["cells"] / seconds if seconds else 0.0,
            cells_per_pass=counts["cells"] / passes if passes else 0.0,
            **counts,
        )


_COUNTS = (
    *("streams_finished", "streams_cancelled", "streams_failed"),
    *("passes", "cells", "updates", "frames", "seconds", "planning_seconds", "passes_retried"),
    *("graphs_captured", "graph_replays", "eager_passes"),
)
