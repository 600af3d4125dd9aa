# SPDX-License-Identifier: Apache-2.0
"""What a network offers the engine. A network of another project needs nothing else (docs/add_a_model.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ardiff_engine.models.cell_batch import CellBatch
from ardiff_engine.models.spec import ModelSpec, Size


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """What a network computes from timesteps alone, once per schedule: tensors [..., R, values, width].

    A token names its row. Only the network knows what the rows mean.
    """

    parts: tuple[torch.Tensor, ...]

    @property
    def rows(self) -> int:
        return self.parts[0].shape[-3]

    @classmethod
    def joined(cls, tables: Sequence[Tables]) -> Tables:
        """The rows of all, one after the other."""
        return cls(tuple(torch.cat(parts, dim=-3) for parts in zip(*(t.parts for t in tables), strict=True)))


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes: weights with the copies that inference makes of them, tables, workspace of the largest pass."""

    weights: int
    tables: int
    workspace: int


class VideoModel(Protocol):
    """A denoiser of frames that stand at different timesteps and see each other through pages.

    Subclassing is not needed; it brings the defaults of `freeze`, `to_tokens`, `from_tokens`, `frame_rows`,
    `condition_row` and `write_condition`.
    """

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, pages and tables."""

    def freeze(self) -> None:
        """The weights are final: prepare what inference needs. An engine calls it when it is built."""
        return

    def to_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Latent frames [..., *spec.frame_shape(size)] -> [..., spec.tokens(size), channels], as solver and
        engine have them. The solver moves every number alike, so this may only put them in another order."""
        return latents

    def from_tokens(self, tokens: torch.Tensor, size: Size | None) -> torch.Tensor:
        """The way back. size: of the frames, as in `Request.size`."""
        return tokens

    def tables(self, timesteps: torch.Tensor) -> Tables:
        """Rows for timesteps [M]. Row 0 is neutral: padding uses it. How many rows follow is the network's
        business: `frame_rows` and `condition_row` find them."""

    def frame_rows(self, levels: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        """Rows of `tables` for frames at t[levels] of sequences whose first frame is at t[firsts].

        Affine in both, as `condition_row` is: where all levels rise by one, a row always moves by as much.
        """
        return 1 + levels

    def condition_row(self, first: int, timesteps: int) -> int:
        """Row for a joint condition whose first frame is at t[first]; timesteps: M of the table."""
        return 0

    def condition(self, given: torch.Tensor | int | None) -> torch.Tensor:
        """What a user gives as a condition -> `spec.condition.shape`; a typed error if it is none.

        None: what the network takes where nothing is given.
        """

    def null_condition(self) -> torch.Tensor:
        """The condition that stands for "none" in guidance."""

    def write_condition(
        self, condition: torch.Tensor, slots: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor
    ) -> None:
        """For cross conditions: K and V of one in every layer, to the rows `slots` [spec.condition.tokens] of
        pages [layers, pages, kv_heads, page_rows, head_dim]. Once per condition. A slot of -1: that row is
        not stored (`ConditionSpec.counted`)."""
        return

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        """For passes of at most `tokens` tokens and tables of `timesteps` timesteps, estimated from above."""

    def __call__(
        self, x: torch.Tensor, cells: CellBatch, tables: Tables, condition: torch.Tensor | None
    ) -> torch.Tensor:
        """Tokens x [X, channels] of all cells -> what the solver takes from them, of that shape. No gradient.

        Writes the K/V of every token to its slot, then attends through the views of `cells`. The output of
        cells that are not `cells.wanted` may be anything. condition: of the `cells.num_contexts` conditions
        that are fed as tokens, None without.
        """
