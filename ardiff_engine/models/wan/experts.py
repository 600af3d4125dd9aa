# SPDX-License-Identifier: Apache-2.0
"""Two Wan transformers for one video (Wan 2.2 A14B): one for high noise, one for low, chosen by timestep."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.errors import ConfigError
from ardiff_engine.models.cell_batch import CellBatch, ConditionPages
from ardiff_engine.models.protocol import Footprint, Tables, VideoModel
from ardiff_engine.models.spec import ModelSpec, Size
from ardiff_engine.models.wan.config import WanConfig
from ardiff_engine.models.wan.transformer import WanTransformer


class WanExperts(nn.Module, VideoModel):
    """A frame at timestep t >= boundary is what `high` makes of the pass, another one what `low` makes of it.

    Each expert computes the K/V of all frames of a pass anew, in the same pages: so every frame that is seen
    is fed in every pass, and all of them see each other (`ModelSpec.forgets`, `frames_see_later`), as in the
    training of both. A prompt has pages for the K/V of each. A pass with frames on both sides is computed
    twice.
    """

    def __init__(self, high: WanTransformer, low: WanTransformer, boundary: float) -> None:
        """boundary: 0 to 1000. ConfigError: experts of different sizes, or another boundary."""
        super().__init__()
        if high.config != low.config:
            raise ConfigError(f"experts of different sizes: {high.config} and {low.config}.")
        if not 0 <= boundary <= 1000:
            raise ConfigError(f"boundary: got {boundary}, expected a timestep, 0 to 1000.")
        self.high, self.low, self.boundary = high, low, boundary

    @property
    def config(self) -> WanConfig:
        return self.high.config

    @property
    def spec(self) -> ModelSpec:
        own = self.high.spec
        condition = own.condition
        parts = 2 * (condition.parts or (condition.tokens,))
        return replace(
            own,
            forgets=False,
            frames_see_later=True,
            reads_back=True,
            condition=replace(condition, tokens=sum(parts), parts=parts),
        )

    @property
    def device(self) -> torch.device:
        return self.high.device

    @property
    def dtype(self) -> torch.dtype:
        return self.high.dtype

    def freeze(self) -> None:
        self.high.freeze()
        self.low.freeze()

    def to_tokens(self, latents: Tensor) -> Tensor:
        return self.high.to_tokens(latents)

    def from_tokens(self, tokens: Tensor, size: Size | None) -> Tensor:
        return self.high.from_tokens(tokens, size)

    def tables(self, timesteps: Tensor) -> Tables:
        """Those of `high`, those of `low`, and [1, R, 1, 1] which rows are of `low`."""
        low = F.pad(timesteps < self.boundary, (1, 0))
        return Tables(
            (*self.high.tables(timesteps).parts, *self.low.tables(timesteps).parts, low[None, :, None, None])
        )

    def condition(self, given: Tensor | int | None) -> Tensor:
        return self.high.condition(given)

    def null_condition(self) -> Tensor:
        return self.high.null_condition()

    def with_picture(self, prompt: Tensor, picture: Tensor) -> Tensor:
        return self.high.with_picture(prompt, picture)

    def write_condition(self, condition: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        of_high, of_low = slots.chunk(2)
        self.high.write_condition(condition, of_high, k_pages, v_pages)
        self.low.write_condition(condition, of_low, k_pages, v_pages)

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        high, low = (expert.footprint(tokens, timesteps) for expert in (self.high, self.low))
        return Footprint(
            high.weights + low.weights, high.tables + low.tables, max(high.workspace, low.workspace)
        )

    @torch.no_grad()
    def forward(self, x: Tensor, cells: CellBatch, tables: Tables, condition: Tensor | None = None) -> Tensor:
        """See `VideoModel`."""
        *parts, low = tables.parts
        of_low = low.flatten()[cells.frame_ids]
        count = len(parts) // 2
        wanted = [not bool(of_low.all()), bool(of_low.any())]
        outs = [
            expert(x, _own(cells, number), Tables(tuple(parts[number * count : (number + 1) * count])))
            for number, expert in enumerate((self.high, self.low))
            if wanted[number]
        ]
        return outs[0] if len(outs) == 1 else torch.where(of_low[:, None], outs[1], outs[0])


def _own(cells: CellBatch, number: int) -> CellBatch:
    """The cells with an expert's own parts of the conditions."""
    held = cells.conditions
    if held is None:
        return cells
    count = len(held.tables) // 2
    tables = held.tables[number * count : (number + 1) * count]
    return replace(cells, conditions=ConditionPages(held.k, held.v, tables))
