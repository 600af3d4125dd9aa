# SPDX-License-Identifier: Apache-2.0
"""Sizes in the official TiTok-KL checkpoints (stage 1). Their names are those of our `TiTok`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ardiff_engine.errors import CheckpointError, ConfigError, explain
from ardiff_engine.models.titok.config import TiTokConfig
from ardiff_engine.weights.fit import block_count, overlay, shape_of

Shapes = Mapping[str, tuple[int, ...]]

OFFICIAL_HEAD_DIM = 64
OFFICIAL_NORM_GROUPS = 32


def titok_names(shapes: Shapes) -> dict[str, str]:
    """Model name -> name in the file; `module.` is dropped, and of a whole pipeline only the part under
    `vae.` is used."""
    bundled = any(name.removeprefix("module.").startswith("vae.") for name in shapes)
    names = {}
    for stored in shapes:
        name = stored.removeprefix("module.")
        if not bundled or name.startswith("vae."):
            names[name.removeprefix("vae.")] = stored
    return names


def read_titok_config(shapes: Shapes, given: Mapping[str, Any], origin: str) -> TiTokConfig:
    """The configuration that a file implies.

    All sizes and the temporal variant are read from names and shapes, except the head counts (width / 64),
    norm_groups (32) and num_frames (16), which shapes do not show; pass those in `given` where they differ.

    Raises:
        CheckpointError: not a checkpoint of this model.
        ConfigError: `given` contradicts the file, or is needed and absent.
    """
    read = _encoder_sizes(shapes, origin) | _decoder_sizes(shapes, origin) | _pixel_sizes(shapes, origin)
    settings = overlay(read, given, origin)
    for side in ("encoder", "decoder"):
        if f"{side}_heads" not in settings:
            settings[f"{side}_heads"] = _heads(side, settings[f"{side}_width"], origin)
    if "norm_groups" not in settings:
        settings["norm_groups"] = OFFICIAL_NORM_GROUPS
    return TiTokConfig.from_dict(settings)


def _encoder_sizes(shapes: Shapes, origin: str) -> dict[str, Any]:
    width, image_channels, patch, _ = shape_of(shapes, "encoder.patch_embed.weight", 4, origin)
    tokens, _ = shape_of(shapes, "latent_tokens", 2, origin)
    positions, _ = shape_of(shapes, "encoder.positional_embedding", 2, origin)
    moments = shape_of(shapes, "encoder.conv_out.weight", 4, origin)[0]
    grid = math.isqrt(positions - 1)
    if grid * grid + 1 != positions or moments % 2:
        raise CheckpointError(
            explain(
                f"sizes of {origin}",
                got=f"{positions} positions, {moments} moments",
                expected="a square number of positions and one more, and an even number of moments",
                fix="Only square images are supported.",
            )
        )
    return {
        "image_size": grid * patch,
        "patch_size": patch,
        "image_channels": image_channels,
        "encoder_width": width,
        "encoder_layers": block_count(shapes, "encoder.transformer.", origin),
        "num_latent_tokens": tokens,
        "token_size": moments // 2,
    }


def _decoder_sizes(shapes: Shapes, origin: str) -> dict[str, Any]:
    width = shape_of(shapes, "decoder.decoder_embed.weight", 2, origin)[0]
    hidden = shape_of(shapes, "decoder.ffn.0.weight", 4, origin)[0]
    return {
        "decoder_width": width,
        "decoder_layers": block_count(shapes, "decoder.transformer.", origin),
        "logits_hidden": None if hidden == 2 * width else hidden,
        "codebook_logits": shape_of(shapes, "decoder.ffn.2.weight", 4, origin)[0],
        "temporal": any(name.startswith("decoder.fine_temporal_blocks.") for name in shapes),
    }


def _pixel_sizes(shapes: Shapes, origin: str) -> dict[str, Any]:
    levels = block_count(shapes, "pixel_decoder.up.", origin)
    channels = [
        shape_of(shapes, f"pixel_decoder.up.{level}.block.0.conv2.weight", 4, origin)[0]
        for level in range(levels)
    ]
    unit = math.gcd(*channels)
    return {
        "quantized_channels": shape_of(shapes, "pixel_quantize_conv.weight", 4, origin)[0],
        "hidden_channels": unit,
        "channel_multipliers": tuple(count // unit for count in channels),
        "res_blocks": block_count(shapes, "pixel_decoder.up.0.block.", origin),
    }


def _heads(side: str, width: int, origin: str) -> int:
    if width % OFFICIAL_HEAD_DIM:
        raise ConfigError(
            explain(
                f"{side}_heads of {origin}",
                got=f"width {width}, not a multiple of {OFFICIAL_HEAD_DIM}",
                expected=f"{side}_heads in config, because shapes do not show them",
                fix=f'Pass e.g. config={{"{side}_heads": 4}}.',
            )
        )
    return width // OFFICIAL_HEAD_DIM
