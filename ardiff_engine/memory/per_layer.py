# SPDX-License-Identifier: Apache-2.0
"""Layers and heads that see more, or less: local layers with a short window between global ones; heads that
need the last frames alone beside those that look far back (Forcing-KV)."""

from __future__ import annotations

from dataclasses import dataclass

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.full import Full
from ardiff_engine.memory.policy import StoresClean, require_cacheable
from ardiff_engine.memory.view import Fed, View
from ardiff_engine.memory.window import Window
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.plan import Frames, Now, Plan


@dataclass(frozen=True, slots=True)
class PerLayer(StoresClean):
    """memories: Full or Window, alike in joint and clean. of_layer: which of them each layer sees by; or,
    where its heads differ, each kv head of it. Heads that see alike cost least side by side: they share a
    call.

    A page serves all layers and heads, so frames stay for as long as the memory that sees most keeps them.
    """

    memories: tuple[Full | Window, ...]
    of_layer: tuple[int | tuple[int, ...], ...]
    by_layer = True

    def __post_init__(self) -> None:
        plain = all(type(memory) in (Full, Window) for memory in self.memories)
        alike = (
            plain and len({(own.joint, own.stores(Fed(range(1), 1, 1, True))) for own in self.memories}) == 1
        )
        used = {number for own in self.of_layer for number in (own if isinstance(own, tuple) else (own,))}
        if not alike or used != set(range(len(self.memories))) or len(self._heads) > 1:
            raise ConfigError(
                f"memory.PerLayer({self.memories!r}, {self.of_layer!r}): give memories, Full or Window, "
                "alike in joint and clean, and the index of one of them for each layer, or for each kv head "
                "of a layer; all must be used"
            )

    @property
    def widest(self) -> Full | Window:
        """What sees all that any of them sees."""
        first = self.memories[0]
        windows = [memory for memory in self.memories if isinstance(memory, Window)]
        if len(windows) < len(self.memories):
            return Full(first.joint)
        size, sink = max(own.size for own in windows), max(own.sink for own in windows)
        back = max(own.back for own in windows)
        return Window(size, sink, first.joint, windows[0].clean, back=back)

    @property
    def back(self) -> int:
        return max(memory.back for memory in self.memories)

    @property
    def chunk(self) -> int:
        return min(memory.chunk for memory in self.memories)

    def check(self, plan: Plan, spec: ModelSpec) -> None:
        require_cacheable("memory.PerLayer", spec)
        for memory in self.memories:
            memory.check(plan, spec)
        if len(self.of_layer) != spec.layers or not spec.views_per_layer:
            raise ConfigError(
                f"memory.PerLayer of {len(self.of_layer)} layers with a model of {spec.layers}"
                + ("" if spec.views_per_layer else ", which has one view for all of them")
            )

        if self._heads and (self._heads != {spec.kv_heads} or not spec.views_per_head):
            raise ConfigError(
                f"memory.PerLayer of {max(self._heads)} heads with a model of {spec.kv_heads} kv heads"
                + ("" if spec.views_per_head else ", which has one view for all heads of a layer")
            )

    def most_frames(self, plan: Plan) -> int:
        return self.widest.most_frames(plan)

    def view(self, fed: Fed, now: Now) -> View:
        return self.widest.view(fed, now)

    def views(self, fed: Fed, now: Now) -> tuple[View, ...]:
        views = [memory.view(fed, now) for memory in self.memories]
        return tuple([views[number] for number in self.numbers])

    @property
    def numbers(self) -> tuple[int, ...]:
        """By which of the memories each layer sees, or each head of each layer."""
        heads = max(self._heads, default=1)
        of_heads = [own if isinstance(own, tuple) else (own,) * heads for own in self.of_layer]
        return tuple([number for own in of_heads for number in own])

    @property
    def _heads(self) -> set[int]:
        """Lengths of the entries for heads."""
        return {len(own) for own in self.of_layer if isinstance(own, tuple)}

    def kept(self, oldest: range, now: Now) -> Frames:
        return self.widest.kept(oldest, now)

    def stores(self, fed: Fed) -> bool:
        return self.widest.stores(fed)
