# SPDX-License-Identifier: Apache-2.0
"""What a codec offers: latents of whole videos, and a decoder with state for frames as they come."""

from __future__ import annotations

from typing import Protocol

import torch


class Decoder(Protocol):
    """Decodes the latents of one video in order. Pieces of any length give the same frames."""

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        """The next n latents -> the pictures that follow from them; how many is the codec's business."""


class Codec(Protocol):
    """Pixels are float, in the codec's own range; their layout and that of latents are the codec's."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor: ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...

    def decoder(self) -> Decoder:
        """A decoder for a new video."""

    def bytes_per_stream(self, height: int, width: int) -> int:
        """Memory of one decoder between two pieces, for pictures of that size."""
