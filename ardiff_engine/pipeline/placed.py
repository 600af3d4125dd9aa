# SPDX-License-Identifier: Apache-2.0
"""Where the models of a pipeline are, and in what numbers they compute."""

from __future__ import annotations

from typing import Any, Self

import torch

from ardiff_engine.device import usable_device
from ardiff_engine.pipeline.inputs import device_and_dtype
from ardiff_engine.pipeline.kept_engine import KeptEngine


class Placed:
    """A transformer, an autoencoder, and the engine that is kept for them."""

    transformer: Any
    vae: Any
    _kept: KeptEngine

    def to(
        self,
        *places: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Move both models to a device, or the transformer to a dtype, or both, and return the pipeline:
        `pipe.to("cuda")`, `pipe.to(torch.bfloat16)`, `pipe.to("cuda", torch.bfloat16)`. A text encoder stays
        where it is.

        Raises ConfigError, and moves nothing, for a device that is not there and for dtypes of whole numbers.
        """
        device, dtype = device_and_dtype(places, device, dtype)
        place = None if device is None else usable_device(device)
        self._kept.forget()
        self.transformer.to(device=place, dtype=dtype)
        self.vae.to(device=place)
        return self

    @property
    def device(self) -> torch.device:
        device: torch.device = self.transformer.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the transformer's weights."""
        dtype: torch.dtype = self.transformer.dtype
        return dtype
