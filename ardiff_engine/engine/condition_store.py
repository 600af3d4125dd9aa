# SPDX-License-Identifier: Apache-2.0
"""K and V of cross conditions, in pages of their own: written once each, shared by all that have the same."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.page_pool import choose_page_rows
from ardiff_engine.models.cell_batch import ConditionPages
from ardiff_engine.models.protocol import VideoModel
from ardiff_engine.ops.frame_table import FrameTable

TABLES_KEPT = 16


@dataclass(slots=True)
class _Entry:
    """One condition in the pool. users: the tensors of streams that hold it."""

    key: bytes
    place: int
    users: int = 0


class ConditionStore:
    """A condition stays as long as the tensor of some stream that names it; its place is then given on."""

    def __init__(self, model: VideoModel) -> None:
        spec = model.spec
        if model.device.type != "cpu":
            raise ConfigError(
                f"cross conditions on {model.device}: expected the CPU, the only place where they run so far."
            )
        self._model = model
        self._tokens = spec.condition.tokens
        rows = choose_page_rows(self._tokens)
        full, rest = divmod(self._tokens, rows)
        self._valid = [rows] * full + [rest] * (rest > 0)
        self._page_rows = rows
        shape = (spec.layers, 0, spec.kv_heads, rows, spec.head_dim)
        self._k, self._v = (torch.zeros(shape, dtype=model.dtype) for _ in "kv")
        self._entries: dict[bytes, _Entry] = {}
        self._held: dict[int, tuple[weakref.ref[torch.Tensor], list[_Entry]]] = {}
        self._free: list[int] = []
        # Filled by the collector, which may run in any thread: acted upon at the next pass.
        self._dropped: list[int] = []
        self._tables: OrderedDict[tuple[tuple[int, int, int], ...], FrameTable] = OrderedDict()

    @property
    def stored(self) -> int:
        """Conditions in the pool."""
        self._collect()
        return len(self._entries)

    def of_pass(self, sequences: Sequence[tuple[torch.Tensor, Sequence[int], int]]) -> ConditionPages:
        """sequences: for each stream of a pass, in token order, its conditions [branches, *shape], how many
        frames each branch feeds, and tokens of a frame."""
        self._collect()
        parts = [
            (entry.place, frames, tokens)
            for conditions, counts, tokens in sequences
            for entry, frames in zip(self._of(conditions), counts, strict=True)
            if frames
        ]
        return ConditionPages(self._k, self._v, self._table(tuple(parts)))

    # --- private

    def _of(self, conditions: torch.Tensor) -> list[_Entry]:
        held = self._held.get(id(conditions))
        if held is not None and held[0]() is conditions:
            return held[1]
        entries = [self._entry(condition) for condition in conditions]
        number, dropped = id(conditions), self._dropped
        reference = weakref.ref(conditions, lambda _: dropped.append(number))
        for entry in entries:
            entry.users += 1
        self._held[number] = reference, entries
        return entries

    def _entry(self, condition: torch.Tensor) -> _Entry:
        key = hashlib.sha256(condition.contiguous().view(torch.uint8).numpy().tobytes()).digest()
        entry = self._entries.get(key)
        if entry is None:
            if not self._free:
                self._grow()
            place = self._free[-1]
            first = place * len(self._valid) * self._page_rows
            slots = torch.arange(first, first + self._tokens)
            self._model.write_condition(condition, slots, self._k, self._v)
            self._free.pop()
            entry = self._entries[key] = _Entry(key, place)
        return entry

    def _grow(self) -> None:
        """Twice the room. Passes that are under way keep the pages that they have."""
        pages = self._k.shape[1]
        most = max(2, 2 * pages // len(self._valid))
        size = (self._k.shape[0], most * len(self._valid) - pages, *self._k.shape[2:])
        self._k, self._v = (torch.cat([t, t.new_zeros(size)], dim=1) for t in (self._k, self._v))
        self._free += range(pages // len(self._valid), most)

    def _collect(self) -> None:
        """Give the places of conditions on that nobody holds any more."""
        while self._dropped:
            held = self._held.pop(self._dropped.pop(), None)
            for entry in held[1] if held is not None else ():
                entry.users -= 1
                if entry.users == 0:
                    del self._entries[entry.key]
                    self._free.append(entry.place)

    def _table(self, parts: tuple[tuple[int, int, int], ...]) -> FrameTable:
        table = self._tables.get(parts)
        if table is None:
            count = len(self._valid)
            table = self._tables[parts] = FrameTable.build(
                [[tokens] * frames for _, frames, tokens in parts],
                [list(range(place * count, (place + 1) * count)) for place, _, _ in parts],
                [self._valid] * len(parts),
            )
            if len(self._tables) > TABLES_KEPT:
                self._tables.popitem(last=False)
        return table
