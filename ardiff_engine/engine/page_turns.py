# SPDX-License-Identifier: Apache-2.0
"""What a pass begins with where frames are seen elsewhere than they were written: their K, turned, in other
pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ardiff_engine import ops
from ardiff_engine.device import upload
from ardiff_engine.engine.layout import Work
from ardiff_engine.errors import ConfigError
from ardiff_engine.memory.page_pool import PagePool
from ardiff_engine.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, eq=False)
class PageTurns:
    """Page pages[i] becomes page sources[i], seen places[i] further: int64 [n] each, in host memory.

    Nothing of it is written in the pass itself, so it may be done twice."""

    sources: torch.Tensor
    pages: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, work: Work) -> PageTurns | None:
        """What the streams of a pass need; None: nothing is turned."""
        turns = [turn for state, _ in work for turn in state.pages.turns]
        return cls(*torch.tensor(turns, dtype=torch.int64).unbind(1)) if turns else None

    def run(self, pool: PagePool, spec: ModelSpec) -> None:
        if spec.frame_angles is None:
            raise ConfigError("frames seen elsewhere than they were written, by a model without frame_angles")
        device = pool.k.device
        sources, pages, places = (upload(t, device) for t in (self.sources, self.pages, self.places))
        angles = upload(torch.tensor(spec.frame_angles, dtype=torch.float64), device)
        ops.copy_pages_(pool.k, pool.v, sources, pages)
        ops.rotate_pages_(pool.k, pages, places, angles)
