# SPDX-License-Identifier: Apache-2.0
"""Cross conditions in the page pool: K and V of each are written once, and held by all streams that have it.

Every stream is promised pages for conditions of its own. So sharing never has to be counted on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ardiff_engine.memory.page_manager import Lease
from ardiff_engine.models.condition_rows import condition_rows
from ardiff_engine.models.spec import ConditionSpec, ModelSpec
from ardiff_engine.ops.frame_table import FrameTable


@dataclass(frozen=True, slots=True)
class ConditionKey:
    """What tells a condition apart. distinct: rows of each part that are stored; see `ConditionSpec`."""

    digest: bytes
    distinct: tuple[int, ...]


def condition_keys(spec: ModelSpec, conditions: torch.Tensor) -> tuple[ConditionKey, ...]:
    """Of conditions [branches, *spec.condition.shape]; empty if the network does not cross with them."""
    if spec.condition.kind != "cross":
        return ()
    here = conditions.detach().cpu().contiguous()
    rows = here.view(torch.uint8).flatten(1)
    digests = [hashlib.sha256(row.numpy().tobytes()).digest() for row in rows]
    distinct = [spec.condition.distinct(own) for own in here]
    return tuple(map(ConditionKey, digests, distinct))


@dataclass(slots=True, eq=False)
class StoredCondition:
    """pages: of all layers. leases: that hold them; written: whether K and V are there."""

    key: ConditionKey
    pages: list[int]
    leases: list[Lease]
    written: bool = False

    @property
    def held(self) -> bool:
        """Whether somebody holds it: otherwise its pages may by now be anybody's."""
        return any(not lease.closed for lease in self.leases)


class ConditionStore:
    """pages: that one condition takes."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._stored: dict[ConditionKey, StoredCondition] = {}

    @property
    def stored(self) -> int:
        """Conditions that somebody holds."""
        return sum(stored.held for stored in self._stored.values())

    def exchanged(
        self, held: Sequence[StoredCondition], keys: Sequence[ConditionKey], lease: Lease
    ) -> list[StoredCondition]:
        """The conditions of `keys`, held by the lease from now on, and no others of those `held` by it."""
        for gone in dict.fromkeys(stored for stored in held if stored.key not in keys):
            gone.leases.remove(lease)
            lease.give_back(gone.pages)
        self._stored = {key: stored for key, stored in self._stored.items() if stored.held}
        for key in dict.fromkeys(keys):
            stored = self._stored.get(key)
            if stored is None:
                self._stored[key] = StoredCondition(key, lease.take(self._pages), [lease])
            elif lease not in stored.leases:
                lease.hold(stored.pages)
                stored.leases = [*(other for other in stored.leases if not other.closed), lease]
        return [self._stored[key] for key in keys]


def condition_tables(
    spec: ConditionSpec,
    page_rows: int,
    frames: Sequence[int],
    distinct: Sequence[tuple[int, ...]],
    cell_tokens: np.ndarray,
) -> tuple[FrameTable, ...]:
    """Of each part of cross conditions, with any pages: all cells of a sequence see its condition alone.

    frames, distinct: of each sequence that has cells, how many, and rows of the parts that are stored."""
    tables = []
    for part, pages in enumerate(spec.pages(page_rows) if spec.kind == "cross" else ()):
        held = [condition_rows(spec.rows[part], own[part], page_rows) for own in distinct]
        bias = torch.tensor([more for own in held for more in own.bias], dtype=torch.float32)
        tables.append(
            FrameTable.from_flat(
                cell_tokens,
                frames,
                np.full(len(frames), pages),
                np.zeros(len(frames) * pages, np.int32),
                [count for own in held for count in own.valid],
                np.full(len(cell_tokens), pages),
                bias if spec.counted else None,
            )
        )
    return tuple(tables)
