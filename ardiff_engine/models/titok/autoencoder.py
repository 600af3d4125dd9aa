# SPDX-License-Identifier: Apache-2.0
"""TiTok-KL, the frame autoencoder of AR-Diffusion: image to K latent tokens of c channels, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.errors import TensorError, explain
from ardiff_engine.models.titok.blocks import TransformerBlock
from ardiff_engine.models.titok.config import TiTokConfig
from ardiff_engine.models.titok.pixel_decoder import PixelDecoder
from ardiff_engine.models.titok.temporal import (
    TEMPORAL_INIT_STD,
    CoarseTemporalBlock,
    FineTemporalBlock,
    coarse_mask,
)

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class TiTokEncoder(nn.Module):
    """Images [N, 3, H, W] and latent tokens [K, W] -> moments [N, 2c, 1, K], every frame alone.

    The tokens [N, K, W] are reinterpreted, not transposed, as [N, W, K, 1] before the 1×1 convolution; the
    published weights were trained that way.
    """

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.patch_embed = nn.Conv2d(
            config.image_channels, width, config.patch_size, stride=config.patch_size
        )
        self.class_embedding = _embedding(1, width)
        self.positional_embedding = _embedding(config.grid**2 + 1, width)
        self.latent_token_positional_embedding = _embedding(config.num_latent_tokens, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(
            TransformerBlock(width, config.encoder_heads) for _ in range(config.encoder_layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, 2 * config.token_size, 1)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        count, _, width = patches.shape
        x = (
            torch.cat([self.class_embedding.expand(count, 1, width), patches], dim=1)
            + self.positional_embedding
        )
        latents = latent_tokens + self.latent_token_positional_embedding
        x = self.ln_pre(torch.cat([x, latents.expand(count, *latents.shape)], dim=1))
        for block in self.transformer:
            x = block(x)
        tokens = self.ln_post(x[:, -latents.shape[0] :])
        moments = self.conv_out(tokens.reshape(count, width, latents.shape[0], 1))
        return moments.reshape(count, -1, 1, latents.shape[0])


class TiTokDecoder(nn.Module):
    """Latents [N, c, 1, K] -> code logits [N, codebook_logits, g, g]. Latents are L2-normalised over c first.

    With `temporal`, N must be whole clips of `num_frames`, and frames see the earlier frames of their clip.
    """

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width, layers, heads = config.decoder_width, config.decoder_layers, config.decoder_heads
        self.grid, self.latents = config.grid, config.num_latent_tokens
        self.num_frames = config.num_frames
        self.temporal = config.temporal
        self.decoder_embed = nn.Linear(config.token_size, width)
        self.class_embedding = _embedding(1, width)
        self.positional_embedding = _embedding(config.grid**2 + 1, width)
        self.mask_token = _embedding(1, 1, width)
        self.latent_token_positional_embedding = _embedding(config.num_latent_tokens, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        if config.temporal:
            self.fine_temporal_blocks = nn.ModuleList(FineTemporalBlock(width, heads) for _ in range(layers))
            self.coarse_temporal_blocks = nn.ModuleList(
                CoarseTemporalBlock(width, heads) for _ in range(layers)
            )
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Conv2d(width, config.logits_width, 1),
            nn.Tanh(),
            nn.Conv2d(config.logits_width, config.codebook_logits, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        tokens = F.normalize(z.flatten(2), dim=1, eps=1e-12).transpose(1, 2)
        latents = self.decoder_embed(tokens) + self.latent_token_positional_embedding
        count, positions = z.shape[0], self.grid**2
        mask_stream = torch.cat([self.class_embedding[None], self.mask_token.expand(1, positions, -1)], dim=1)
        mask_stream = (mask_stream + self.positional_embedding).expand(count, -1, -1)
        x = self.ln_pre(torch.cat([mask_stream, latents], dim=1))
        visible = coarse_mask(self.num_frames, self.latents, positions, z.device) if self.temporal else None
        for index, block in enumerate(self.transformer):
            if visible is not None:
                x = self._look_back(index, x, visible)
            x = block(x)
        grid = self.ln_post(x[:, 1 : 1 + positions]).transpose(1, 2)
        return self.ffn(grid.unflatten(2, (self.grid, self.grid)))

    def _look_back(self, index: int, x: Tensor, visible: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.num_frames))
        first, grid, latents = clips.split([1, self.grid**2, self.latents], dim=2)
        grid = self.fine_temporal_blocks[index](grid)
        latents, grid = self.coarse_temporal_blocks[index](latents, grid, visible)
        return torch.cat([first, grid, latents], dim=2).flatten(0, 1)


class TiTok(nn.Module):
    """The frame autoencoder TiTok_KL, or with `config.temporal` TiTok_KL_wT (AR-Diffusion, stage 1).

    Parameter names are those of the official checkpoints. Everything is differentiable.
    """

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_tokens = _embedding(config.num_latent_tokens, config.encoder_width)
        self.encoder = TiTokEncoder(config)
        self.decoder = TiTokDecoder(config)
        self.apply(_initialise)
        self.pixel_quantize_conv = nn.Conv2d(config.codebook_logits, config.quantized_channels, 1)
        nn.init.zeros_(self.pixel_quantize_conv.bias)  # type: ignore[arg-type]
        self.pixel_decoder = PixelDecoder(config)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior: images [N, 3, H, W] in [0, 1] -> twice [N, c, 1, K].

        The log-variance is clamped to [-30, 20].

        Raises TensorError for another shape, an integer dtype, or another device than the model's.
        """
        config = self.config
        _check(
            images,
            "images",
            (None, config.image_channels, config.image_size, config.image_size),
            self.latent_tokens,
        )
        mean, log_variance = self.encoder(images.to(self.latent_tokens.dtype), self.latent_tokens).chunk(
            2, dim=1
        )
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def encode(
        self,
        images: Tensor,
        sample_posterior: bool = False,
        seed: int | None = None,
        *,
        frames_per_pass: int = 16,
    ) -> Tensor:
        """Latents of a video: images [B, T, 3, H, W] in [0, 1] -> [B, T, c, 1, K], not normalised.

        Args:
            images: any float dtype; computed in the model's dtype.
            sample_posterior: return mean + exp(logvar / 2)·ε instead of the mean.
            seed: seed of ε, the same on every device; None draws from torch's global CPU generator.
            frames_per_pass: at most so many frames are computed at once; bounds memory, does not change the
                mathematics.

        Raises TensorError for another shape, an integer dtype, or another device than the model's.
        """
        config = self.config
        shape = (None, None, config.image_channels, config.image_size, config.image_size)
        _check(images, "images", shape, self.latent_tokens)
        parts = [self.moments(part) for part in images.flatten(0, 1).split(_positive(frames_per_pass))]
        z = torch.cat([mean for mean, _ in parts])
        if sample_posterior:
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            noise = torch.randn(z.shape, generator=generator).to(z)
            z = z + torch.exp(0.5 * torch.cat([log_variance for _, log_variance in parts])) * noise
        return z.unflatten(0, images.shape[:2])

    def decode(self, z: Tensor, *, frames_per_pass: int = 16) -> Tensor:
        """Images of a video: z [B, T, c, 1, K] of any norm -> [B, T, 3, H, W], not clamped.

        The temporal variant decodes clips of `num_frames` frames, each independent of the others, so T must
        be a multiple of it. `frames_per_pass` bounds memory; at least one frame or clip is computed at once.

        Raises TensorError for another shape or frame count, an integer dtype, or another device than the
        model's.
        """
        config = self.config
        _check(z, "z", (None, None, *config.latent_shape), self.latent_tokens)
        unit = config.num_frames if config.temporal else 1
        if z.shape[1] % unit:
            raise TensorError(
                explain(
                    "frames of z in the temporal decoder",
                    got=z.shape[1],
                    expected=f"a multiple of {unit}",
                    fix=f"Decode whole clips of {unit} frames, or use a per-frame autoencoder.",
                )
            )
        size = max(1, _positive(frames_per_pass) // unit) * unit
        flat = z.flatten(0, 1).to(self.latent_tokens.dtype)
        images = torch.cat([self._pixels(part) for part in flat.split(size)])
        return images.unflatten(0, z.shape[:2])

    def forward(self, images: Tensor, sample_posterior: bool = False, seed: int | None = None) -> Tensor:
        """decode(encode(images)): the reconstruction that stage-1 training compares with the input."""
        return self.decode(self.encode(images, sample_posterior, seed))

    def _pixels(self, z: Tensor) -> Tensor:
        return self.pixel_decoder(self.pixel_quantize_conv(self.decoder(z).softmax(dim=1)))


def _embedding(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * shape[-1] ** -0.5)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, FineTemporalBlock | CoarseTemporalBlock):
        nn.init.trunc_normal_(module.attn.in_proj_weight, std=TEMPORAL_INIT_STD)
        nn.init.trunc_normal_(module.attn.out_proj.weight, std=TEMPORAL_INIT_STD)


def _positive(frames_per_pass: int) -> int:
    if frames_per_pass < 1:
        raise TensorError(
            explain("frames_per_pass", got=frames_per_pass, expected="at least 1", fix="Use the default, 16.")
        )
    return frames_per_pass


def _check(x: Tensor, name: str, shape: tuple[int | None, ...], parameter: Tensor) -> None:
    wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
    fits = x.ndim == len(shape) and all(
        size in (None, given) for size, given in zip(shape, x.shape, strict=True)
    )
    if not fits or x.numel() == 0:
        raise TensorError(
            explain(f"shape of {name}", got=list(x.shape), expected=wanted, fix="Reshape or resize it.")
        )
    if not x.is_floating_point():
        raise TensorError(
            explain(
                f"dtype of {name}", got=x.dtype, expected="a float dtype", fix="Convert it, e.g. x / 255."
            )
        )
    if x.device != parameter.device:
        raise TensorError(
            explain(
                f"device of {name}",
                got=x.device,
                expected=parameter.device,
                fix="Move it to the model's device.",
            )
        )
