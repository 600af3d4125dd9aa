# SPDX-License-Identifier: Apache-2.0
"""The autoencoders of Wan 2.1 (Wan Team 2025, arXiv 2503.20314; 8x in height and width) and 2.2 (16x).

Both take four frames to a latent, but the first frame of a video is a latent of its own. All convolutions
look back in time only. So a video can be encoded and decoded in pieces, if the last input frames of every
layer are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from ardiff_engine import arguments
from ardiff_engine.codec.past import Past
from ardiff_engine.codec.protocol import Size
from ardiff_engine.codec.video import FRAMES_PER_LATENT, VideoDecoder, VideoEncoder, encode_whole, latent_size
from ardiff_engine.codec.wan.causal import CausalConv3d
from ardiff_engine.codec.wan.constants import MEAN_21, STD_21
from ardiff_engine.codec.wan.folding import from_patches, to_patches
from ardiff_engine.codec.wan.layout import VAEFile, open_vae
from ardiff_engine.codec.wan.networks import Encoder, PixelDecoder
from ardiff_engine.errors import ConfigError
from ardiff_engine.weights.fit import fill

Values = Sequence[float] | Tensor


class WanVAE(nn.Module):
    """Pixels in [-1, 1] and normalised latents; parameter names are the official ones."""

    black = -1.0
    frames_per_latent = FRAMES_PER_LATENT
    first_frames = 1

    def __init__(
        self,
        width: int = 96,
        channels: int = 16,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        res_blocks: int = 2,
        mean: Values = MEAN_21,
        std: Values = STD_21,
        *,
        residual: bool = False,
        decoder_width: int | None = None,
    ) -> None:
        """multipliers: of `width`, for each of the four stages. mean, std: [channels], of the latents.
        residual: as Wan 2.2, patches of 2 x 2 pixels and shortcuts around the stages. decoder_width: `width`
        if not given.

        ConfigError: sizes below 1, another number of stages, widths that a shortcut does not divide; mean or
        std of another length or std <= 0.
        """
        super().__init__()
        decoder_width = width if decoder_width is None else decoder_width
        if min(width, decoder_width, channels, res_blocks, *multipliers) < 1 or len(multipliers) != 4:
            raise ConfigError(
                f"WanVAE: width {width}, decoder_width {decoder_width}, channels {channels}, multipliers "
                f"{tuple(multipliers)}, res_blocks {res_blocks}; expected whole numbers >= 1 and four "
                "multipliers."
            )
        self.width, self.decoder_width, self.channels = width, decoder_width, channels
        self.multipliers, self.res_blocks, self.residual = tuple(multipliers), res_blocks, residual
        self.patch = 2 if residual else 1
        self.scale = 8 * self.patch
        sizes = channels, res_blocks, residual
        self.encoder = Encoder(3 * self.patch**2, [width * factor for factor in multipliers], *sizes)
        self.conv1 = CausalConv3d(2 * channels, 2 * channels, (1, 1, 1))
        self.conv2 = CausalConv3d(channels, channels, (1, 1, 1))
        # Not by assignment: the official name of this part is also that of the method `decoder`.
        self._modules["decoder"] = self._decoder_network()
        self.mean: Tensor
        self.std: Tensor
        for name, values in zip(("mean", "std"), self.constants(mean, std, channels), strict=True):
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        mean: Values | None = None,
        std: Values | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> WanVAE:
        """Read safetensors, one file or shards, or a diffusers folder; see `layout.open_vae`.

        mean, std: of the latents, where the file is of other sizes than the published ones and has no
        config.json. CheckpointError, before any weight is read: names or shapes of something else.
        """
        found = open_vae(arguments.path("path", path), mean, std)
        vae = cls.empty(found)
        fill(vae, found.file, found.names, shapes=found.shapes, device=device, dtype=dtype)
        vae.mean, vae.std = vae.mean.to(dtype), vae.std.to(dtype)
        return vae.eval().requires_grad_(False)

    @classmethod
    def empty(cls, found: VAEFile) -> WanVAE:
        """The model of a file without its weights."""
        with torch.device("meta"):
            return cls(
                found.width,
                found.channels,
                found.multipliers,
                found.res_blocks,
                found.mean,
                found.std,
                residual=found.residual,
                decoder_width=found.decoder_width,
            )

    @staticmethod
    def constants(mean: Values, std: Values, channels: int) -> tuple[Tensor, Tensor]:
        """float32 [1, channels, 1, 1, 1] each, on the CPU. ConfigError: not such numbers, or a std <= 0."""
        found = []
        for name, values in (("mean", mean), ("std", std)):
            try:
                column = torch.tensor([float(value) for value in values], device="cpu", dtype=torch.float32)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"WanVAE: {name} is {values!r}; expected {channels} numbers.") from error
            good = column > 0 if name == "std" else column.isfinite()
            if len(column) != channels or not bool((good & column.isfinite()).all()):
                raise ConfigError(
                    f"WanVAE: {name} has {len(column)} values; expected {channels}, finite, std > 0."
                )
            found.append(column.reshape(1, channels, 1, 1, 1))
        return found[0], found[1]

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, 1 + 4k, H, W] in [-1, 1] -> normalised latents [B, channels, 1 + k, h, w] (the mean of the
        posterior). TensorError: other numbers of frames, or sizes that `scale` does not divide."""
        return encode_whole(self, pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, channels, F, h, w] -> [B, 3, 1 + 4 (F - 1), H, W], not clamped."""
        return VideoDecoder(self).next(latents)

    def decoder(self, given: Tensor | None = None) -> VideoDecoder:
        """For a video whose latents come in pieces, after the latents `given` [P, channels, h, w]. Only the
        last `reach` of those are decoded again."""
        return VideoDecoder(self, None if given is None else given[-self.reach :])

    def video_encoder(self) -> VideoEncoder:
        """For a video whose frames come in pieces."""
        return VideoEncoder(self)

    @property
    def reach(self) -> int:
        """Latents before a frame that it depends on."""
        rate, frames = 1, 0
        for layer in self.pixel_decoder.modules():
            if isinstance(layer, CausalConv3d) and layer.looks_back:
                frames += layer.looks_back * FRAMES_PER_LATENT // rate
                rate *= 2 if layer.kernel_size[1] == 1 else 1  # the one that makes two frames of one
        # One more: a decoder that starts takes its first latent for the first of a video.
        return -(-frames // FRAMES_PER_LATENT) + 1

    def history(self, frame: int) -> int:
        """The first latent that matters for the frames from latent `frame` on."""
        return max(0, frame - self.reach)

    @property
    def pixel_decoder(self) -> nn.Module:
        return self._modules["decoder"]  # type: ignore[return-value]

    @torch.no_grad()
    def bytes_per_stream(self, size: Size) -> int:
        """Of the features that a decoder of one video keeps; size: height and width of its latents."""
        height, width = latent_size(size)
        past = Past()
        with torch.device("meta"):
            decoder = self._decoder_network().to(self.mean.dtype)
            latent = torch.empty(1, self.channels, 1, height, width, dtype=self.mean.dtype)
            for _ in range(2):
                decoder(latent, past)
        return past.nbytes

    @property
    def feature_maps(self) -> float:
        """Maps [decoder_width, 4 frames, 8 h, 8 w] that the decoding of a latent holds at its widest point,
        beside the state.

        That is a convolution of the last stage. Its first block has an input r times as wide as its output:
        r for the input, 1.5 r for the same normalised, with the two frames before it in front, 1.5 r for
        oneDNN's copy of that in its own order, and 1 for the result: 4 r + 1. Wan 2.1 halves the width where
        it enlarges: r = 1, so 5, and as much in all later convolutions (the block's input, 1.5 + 1.5, the
        result). Wan 2.2 does not: r = 2, so 9; later blocks have the stage's input beside them: r + 5 = 7.
        What comes before is smaller: r/2 + 3 r maps in Wan 2.2's last enlargement, at most 3 in Wan 2.1's.
        """
        ratio = self.multipliers[1] / self.multipliers[0] / (1 if self.residual else 2)
        return max(4 * ratio + 1, ratio + 5 if self.residual else 5)

    def encode_piece(self, pixels: Tensor, past: Past) -> Tensor:
        x = to_patches(pixels.to(self.mean), self.patch)
        mean = self.conv1(self.encoder(x, past), past)[:, : self.channels]
        return (mean - self.mean) / self.std

    def decode_latent(self, latent: Tensor, past: Past) -> Tensor:
        z = self.conv2(latent.to(self.mean) * self.std + self.mean, past)
        return from_patches(self.pixel_decoder(z, past), self.patch)

    def _decoder_network(self) -> PixelDecoder:
        widths = [self.decoder_width * factor for factor in self.multipliers[::-1]]
        return PixelDecoder(3 * self.patch**2, widths, self.channels, self.res_blocks, self.residual)
