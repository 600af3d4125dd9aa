# SPDX-License-Identifier: Apache-2.0
"""A model that runs another one: all that it does not say otherwise is that one's."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ardiff_engine.models.protocol import Footprint, Tables, VideoModel
from ardiff_engine.models.spec import ModelSpec, Size

M = TypeVar("M", bound=VideoModel)


class Wrapped(VideoModel, Generic[M]):
    """spec: what the engine is told in place of the model's own."""

    def __init__(self, model: M, spec: ModelSpec) -> None:
        self.model, self._spec = model, spec

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def freeze(self) -> None:
        self.model.freeze()

    def to_tokens(self, latents: Tensor) -> Tensor:
        return self.model.to_tokens(latents)

    def from_tokens(self, tokens: Tensor, size: Size | None) -> Tensor:
        return self.model.from_tokens(tokens, size)

    def tables(self, timesteps: Tensor) -> Tables:
        return self.model.tables(timesteps)

    def frame_rows(self, levels: np.ndarray, firsts: np.ndarray) -> np.ndarray:
        return self.model.frame_rows(levels, firsts)

    def condition_row(self, first: int, timesteps: int) -> int:
        return self.model.condition_row(first, timesteps)

    def condition(self, given: Tensor | int | None) -> Tensor:
        return self.model.condition(given)

    def null_condition(self) -> Tensor:
        return self.model.null_condition()

    def write_condition(self, condition: Tensor, slots: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
        self.model.write_condition(condition, slots, k_pages, v_pages)

    def footprint(self, tokens: int, timesteps: int) -> Footprint:
        return self.model.footprint(tokens, timesteps)
