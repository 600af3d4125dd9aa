# SPDX-License-Identifier: Apache-2.0
"""What `Engine.stats()` reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """exact: outputs equal the plain algorithm of the memory policy (design 4.3). Seconds are wall time
    inside `step`.
    """

    streams_running: int
    streams_finished: int
    pages_free: int
    pages_held: int
    pages_total: int
    ticks: int
    cells: int
    updates: int
    frames: int
    seconds: float
    cells_per_second: float
    first_frame_seconds: float | None
    exact: bool
