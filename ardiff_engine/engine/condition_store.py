# SPDX-License-Identifier: Apache-2.0
"""Cross conditions in the page pool: K and V of each are written once, and held by all streams that have it.

Every stream is promised pages for conditions of its own. So sharing never has to be counted on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ardiff_engine.memory.page_manager import Lease
from ardiff_engine.models.spec import ModelSpec


def condition_keys(spec: ModelSpec, conditions: torch.Tensor) -> tuple[bytes, ...]:
    """What tells conditions [branches, *spec.condition.shape] apart; empty if the network does not cross with
    them."""
    if spec.condition.kind != "cross":
        return ()
    rows = conditions.detach().cpu().contiguous().view(torch.uint8).flatten(1)
    return tuple(hashlib.sha256(row.numpy().tobytes()).digest() for row in rows)


@dataclass(slots=True, eq=False)
class StoredCondition:
    """pages: of all layers. leases: that hold them; written: whether K and V are there."""

    key: bytes
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
        self._stored: dict[bytes, StoredCondition] = {}

    @property
    def stored(self) -> int:
        """Conditions that somebody holds."""
        return sum(stored.held for stored in self._stored.values())

    def exchanged(
        self, held: Sequence[StoredCondition], keys: Sequence[bytes], lease: Lease
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
