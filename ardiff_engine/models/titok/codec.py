# SPDX-License-Identifier: Apache-2.0
"""TiTok between pictures and the latent frames of a transformer, frame by frame as they come."""

from __future__ import annotations

import torch

from ardiff_engine.ambient import ordinary_mode
from ardiff_engine.codec.protocol import Size
from ardiff_engine.host_copy import read_here
from ardiff_engine.models.pictures import to_images, to_uint8
from ardiff_engine.models.spec import ModelSpec
from ardiff_engine.models.titok.autoencoder import TiTok
from ardiff_engine.models.titok.latents import check_cells, from_tokens, regroup, to_tokens


class TiTokCodec:
    """Latent frames are those of a transformer, which may take neighbouring tokens of TiTok as one."""

    frames_per_latent = 1

    def __init__(self, vae: TiTok, spec: ModelSpec) -> None:
        """ConfigError if the two do not fit."""
        config = vae.config
        check_cells(
            "transformer and autoencoder do not fit",
            (spec.tokens(), spec.channels),
            (config.num_latent_tokens, config.token_size),
        )
        self._vae = vae
        self._tokens = spec.tokens()

    @property
    def image_size(self) -> int:
        return self._vae.config.image_size

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = next(self._vae.parameters())
        images = to_images(pixels, self.image_size).to(weight.device, weight.dtype)
        return regroup(to_tokens(self._vae.encode(images[None]))[0], self._tokens).float()

    def decoder(self, given: torch.Tensor | None = None) -> FrameDecoder:
        return FrameDecoder(self._vae, given)

    def history(self, frame: int) -> int:
        """Frames of a chunk see those before them in it."""
        config = self._vae.config
        return frame - frame % config.num_frames if config.temporal else frame

    def bytes_per_stream(self, size: Size = None) -> int:
        config = self._vae.config
        kept = config.num_frames - 1 if config.temporal else 0
        item = next(self._vae.parameters()).element_size()
        return kept * config.num_latent_tokens * config.token_size * item


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

    @ordinary_mode()
    @torch.no_grad()
    def push(self, latents: torch.Tensor) -> torch.Tensor:
        """Next frames [n, tokens, channels] -> uint8 [n, H, W, 3] on the CPU."""
        weight = next(self._vae.parameters())
        # A chunk is let go as soon as its last frame is queued, which on a GPU is before it has been decoded.
        read_here(latents)
        x = regroup(latents.to(weight.device, weight.dtype), self._tokens)
        if not self._vae.config.temporal:
            return to_uint8(self._vae.decode(from_tokens(x[:, None]))[:, 0])
        return torch.cat([self._decode_next(frame) for frame in x])

    def copy(self, device: torch.device | str | None = None) -> FrameDecoder:
        other = FrameDecoder(self._vae)
        other._chunk = [latent.to(device) for latent in self._chunk]
        return other

    def close(self) -> None:
        self._chunk.clear()

    def _decode_next(self, latent: torch.Tensor) -> torch.Tensor:
        size = self._vae.config.num_frames
        self._chunk.append(latent)
        filled = torch.stack(self._chunk + [latent] * (size - len(self._chunk)))
        image = self._vae.decode(from_tokens(filled[None]))[0, len(self._chunk) - 1]
        if len(self._chunk) == size:
            self._chunk.clear()
        return to_uint8(image[None])
