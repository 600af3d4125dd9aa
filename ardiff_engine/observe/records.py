# SPDX-License-Identifier: Apache-2.0
"""What an engine did in one pass, in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamTick:
    """One stream's part of a pass: frames it fed (first to last), cells of each kind, pages it holds then.

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
class PassRecord:
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
