# SPDX-License-Identifier: Apache-2.0
"""What an engine asks of a video autoencoder."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

Size = tuple[int, int] | None
"""Height and width of a latent frame; None: the only one that the codec has."""


class Decoder(Protocol):
    """The decoding of one video, with whatever its next frames need of those before.

    A decoder may also have `copy(device=None)`: a second one that goes on from here, its state on `device`.
    Without it, forks and pauses of a stream decode the frames again that came before.
    """

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        """The next n latent frames [n, ...] -> the m frames that they complete, in order: [m, 3, H, W] from
        `Codec.black` (or 0) to 1, or uint8 [m, H, W, 3]. How the latents are cut into calls
        changes the frames by rounding at most."""

    def close(self) -> None:
        """Free the state. Nothing may be pushed after that."""


@runtime_checkable
class Codec(Protocol):
    """Latents have the layout of the transformer beside it: Wan [C, h, w], AR-Diffusion [tokens, channels].

    A codec may also have
    black: what a decoder makes of black; 0 without it. White is 1.
    frames_per_latent: frames that a latent makes, except for the first one of a video, which may make fewer.
    history(frame): the first latent that matters for the frames from latent `frame` on; 0 without it. An
        endless stream keeps those from there on, so as to be able to go back.
    """

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """A whole clip -> clean latents; see the codec for shapes and ranges."""

    def decoder(self, given: torch.Tensor | None = None) -> Decoder:
        """For a new video, or for one that goes on after the latents `given` [P, ...], all that are before or
        those from `history(P)` on. Their frames are not made again."""

    def bytes_per_stream(self, size: Size) -> int:
        """Of the state that a decoder keeps at most for one video of latents of this size."""
