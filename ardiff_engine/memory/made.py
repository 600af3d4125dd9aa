# SPDX-License-Identifier: Apache-2.0
"""K/V that no network computes: a frame of the pool made of others when a pass begins (merged, chosen)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.models.spec import ModelSpec, Size

Copy = tuple[int, int]
"""A frame, and which copy of its K/V."""


class Held(NamedTuple):
    """rows: int64 [tokens], where a frame's tokens lie in the pool: page * page_rows + row. place: where it
    stands: its K is turned so far."""

    rows: torch.Tensor
    place: int


class Maker(Protocol):
    def __call__(
        self, pool: PagePool, spec: ModelSpec, size: Size | None, sources: list[Held], target: Held
    ) -> None:
        """Write K and V of the target in all layers, from the sources, which stay as they are: a pass that
        failed begins with it again. size: of the frames, as in Request."""


class Made(NamedTuple):
    """cell: what is made, under a copy of its own, once. sources: of what. shift: where it stands, from its
    frame's number. by: what makes it."""

    cell: Copy
    sources: tuple[Copy, ...]
    shift: int
    by: Maker


class Making(NamedTuple):
    """One of them that a pass begins with. pages: for it; sources: those of what it is made of, each with its
    place."""

    made: Made
    pages: list[int]
    sources: list[tuple[list[int], int]]

    def run(self, pool: PagePool, spec: ModelSpec, size: Size | None) -> None:
        tokens = spec.tokens(size)

        def held(pages: list[int], place: int) -> Held:
            firsts = torch.tensor(pages)[:, None] * pool.page_rows
            rows = (firsts + torch.arange(pool.page_rows)).flatten()[:tokens]
            return Held(rows.to(pool.k.device), place)

        sources = [held(*source) for source in self.sources]
        target = held(self.pages, self.made.cell[0] + self.made.shift)
        self.made.by(pool, spec, size, sources, target)
