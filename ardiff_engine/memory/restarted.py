# SPDX-License-Identifier: Apache-2.0
"""Places that start anew while a video grows (StreamDiffusionV2): they never go beyond a limit."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.around import Around
from ardiff_engine.memory.policy import MemoryPolicy
from ardiff_engine.memory.view import Fed, Run, View
from ardiff_engine.plan import Now


@dataclass(frozen=True, slots=True)
class Restarted(Around):
    """memory: what is seen and kept, at the numbers of frames. The frame whose place would be `limit` stands
    at `first` instead, and the next ones follow it up to the limit. Earlier frames stay where they are."""

    limit: int
    first: int

    def __post_init__(self) -> None:
        if not isinstance(self.memory, MemoryPolicy) or not 0 <= self.first < self.limit:
            raise ConfigError(
                f"memory.Restarted({self.memory!r}, {self.limit}, {self.first}): give a memory, and places "
                "with 0 <= first < limit"
            )

    def view(self, fed: Fed, now: Now) -> View:
        return self._placed(self.memory.view(fed, now))

    def views(self, fed: Fed, now: Now) -> tuple[View, ...]:
        return tuple(map(self._placed, self.memory.views(fed, now)))

    def _placed(self, view: View) -> View:
        return tuple([part for run in view for part in self._cut(run)])

    def _cut(self, run: Run) -> list[Run]:
        """The run, cut where places start anew."""
        round_trip = self.limit - self.first
        parts = []
        first = run.first
        while first < run.stop:
            trips = max(0, (first - self.first) // round_trip)
            stop = min(run.stop, self.first + (trips + 1) * round_trip)
            parts.append(run._replace(first=first, stop=stop, shift=run.shift - trips * round_trip))
            first = stop
        return parts
