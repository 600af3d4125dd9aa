# SPDX-License-Identifier: Apache-2.0
"""Means of named numbers over steps, clips and processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist

from ardiff_engine.training.processes import rank, world_size


class Averages(Mapping[str, float]):
    """Means by name, kept as sums and counts, so that means of means weigh every clip alike: a name may be
    absent from some steps, clips or processes."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, name: str, total: float, count: int = 1) -> None:
        before, seen = self.sums.get(name, (0.0, 0))
        self.sums[name] = (before + total, seen + count)

    def add_all(self, others: Averages, prefix: str = "") -> None:
        for name, (total, count) in others.sums.items():
            self.add(prefix + name, total, count)

    def gather(self) -> None:
        """Called by all processes together: then the first holds what all of them had, the others nothing."""
        if world_size() == 1:
            return
        gathered: list[Any] = [None] * world_size()
        dist.all_gather_object(gathered, self.sums)
        self.sums = {}
        for sums in gathered if rank() == 0 else []:
            for name, (total, count) in sums.items():
                self.add(name, total, count)

    def __getitem__(self, name: str) -> float:
        total, count = self.sums[name]
        return total / count

    def __iter__(self) -> Iterator[str]:
        return iter(self.sums)

    def __len__(self) -> int:
        return len(self.sums)
