# SPDX-License-Identifier: Apache-2.0
"""A memory policy around another one: what a subclass does not say itself, the inner one answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ardiff_engine.memory.made import Made
from ardiff_engine.memory.policy import Event, MemoryPolicy
from ardiff_engine.memory.view import Fed, View
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class Around:
    memory: MemoryPolicy

    @property
    def chunk(self) -> int:
        return self.memory.chunk

    @property
    def by_level(self) -> bool:
        return self.memory.by_level

    @property
    def by_layer(self) -> bool:
        return self.memory.by_layer

    @property
    def back(self) -> int:
        return self.memory.back

    @property
    def slides_after(self) -> int | None:
        return None

    @property
    def proven(self) -> bool:
        return False

    def network(self, spec: ModelSpec) -> ModelSpec:
        return self.memory.network(spec)

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        self.memory.check(plan, spec)

    def most_frames(self, plan: Plan) -> int:
        return self.memory.most_frames(plan)

    def view(self, fed: Fed, now: Now) -> View:
        return self.memory.view(fed, now)

    def views(self, fed: Fed, now: Now) -> tuple[View, ...]:
        return self.memory.views(fed, now)

    def made(self, fed: Fed, now: Now) -> tuple[Made, ...]:
        return self.memory.made(fed, now)

    def kept(self, oldest: range, now: Now) -> Frames:
        return self.memory.kept(oldest, now)

    def stores(self, fed: Fed) -> bool:
        return self.memory.stores(fed)

    def copy(self, fed: Fed) -> int:
        return self.memory.copy(fed)

    def stale(self, event: Event, kept: Frames) -> Frames:
        return self.memory.stale(event, kept)

    def renewed(self, block: range) -> Frames:
        return self.memory.renewed(block)

    def begun(self, block: range, now: Now) -> MemoryPolicy:
        return replace(self, memory=self.memory.begun(block, now))

    def prompted(self, frame: int) -> MemoryPolicy | None:
        memory = self.memory.prompted(frame)
        return None if memory is None else replace(self, memory=memory)
