# SPDX-License-Identifier: Apache-2.0
"""Clean latent frames to pictures, one by one as they come."""

from __future__ import annotations

import torch

from ardiff_engine.engine.host_copy import HostCopy, read_here
from ardiff_engine.errors import NumericalError, explain
from ardiff_engine.models.titok.autoencoder import TiTok
from ardiff_engine.models.titok.latents import from_tokens, regroup


class FrameDecoder:
    """Decodes the frames of one video in order.

    A per-frame autoencoder decodes each frame alone. A temporal one works on chunks of `num_frames` frames
    and is causal, so the frames of an unfinished chunk come out right when the rest is filled with copies of
    the last one.
    """

    def __init__(self, vae: TiTok, given: torch.Tensor | None = None) -> None:
        """given: latents [P, tokens, channels] of the frames before the first one to decode."""
        self._vae = vae
        self._tokens = vae.config.num_latent_tokens
        self._chunk: list[torch.Tensor] = []
        if given is not None and vae.config.temporal:
            unfinished = given[len(given) - len(given) % vae.config.num_frames :]
            self._chunk = list(regroup(unfinished, self._tokens))

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Next frames [n, tokens, channels] -> uint8 [n, H, W, 3] on the CPU."""
        weight = next(self._vae.parameters())
        # A chunk is let go as soon as its last frame is queued, which on a GPU is before it has been decoded.
        read_here(latents)
        x = regroup(latents.to(weight.device, weight.dtype), self._tokens)
        if not self._vae.config.temporal:
            return to_uint8(self._vae.decode(from_tokens(x[:, None]))[:, 0])
        return torch.cat([self._decode_next(frame) for frame in x])

    def _decode_next(self, latent: torch.Tensor) -> torch.Tensor:
        size = self._vae.config.num_frames
        self._chunk.append(latent)
        filled = torch.stack(self._chunk + [latent] * (size - len(self._chunk)))
        image = self._vae.decode(from_tokens(filled[None]))[0, len(self._chunk) - 1]
        if len(self._chunk) == size:
            self._chunk.clear()
        return to_uint8(image[None])


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """[n, 3, H, W] in [0, 1] -> uint8 [n, H, W, 3]. NumericalError: NaN or infinity, which have no colour."""
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    # Both in one go: on a GPU the thread waits once, and for its own stream only.
    finite, pixels = HostCopy(torch.isfinite(images).all(), pixels).wait()
    if not bool(finite):
        raise NumericalError(
            explain(
                "decoded pictures",
                got="NaN or infinity",
                expected="finite numbers",
                fix="Check the autoencoder's weights.",
            )
        )
    return pixels


def to_images(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [T, H, W, 3] -> [T, 3, size, size] in [0, 1]: shorter side resized (bicubic), centre crop."""
    images = frames.permute(0, 3, 1, 2).float() / 255
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    scale = size / min(height, width)
    resized = (max(size, round(height * scale)), max(size, round(width * scale)))
    images = torch.nn.functional.interpolate(images, size=resized, mode="bicubic", antialias=True)
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return images[..., top : top + size, left : left + size].clamp(0, 1)
