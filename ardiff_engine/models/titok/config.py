# SPDX-License-Identifier: Apache-2.0
"""Sizes of the frame autoencoder `TiTok`."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from ardiff_engine.errors import ConfigError, explain
from ardiff_engine.settings import MAX_LAYERS, MAX_SIZE

MAX_LEVELS = 16
_PRESETS: dict[str, tuple[int, int, int]] = {
    "small": (512, 8, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


@dataclasses.dataclass(frozen=True, slots=True)
class TiTokConfig:
    """Sizes of a TiTok-KL frame autoencoder; the defaults are those of the released ones.

    Args:
        image_size: height and width of a frame in pixels; a multiple of `patch_size`.
        patch_size: pixels per side of a token of the grid; equals `2 ** (len(channel_multipliers) - 1)`,
            because the pixel decoder doubles the grid once per multiplier but the first.
        encoder_width, encoder_layers, encoder_heads: the transformer that reads pixels.
        decoder_width, decoder_layers, decoder_heads: the transformer that writes code logits.
        num_latent_tokens: latent tokens per frame (K).
        token_size: channels per latent token (c).
        codebook_logits: code logits per grid token.
        logits_hidden: width inside the head that makes the logits; None: twice `decoder_width`.
        quantized_channels: channels that enter the pixel decoder.
        hidden_channels, channel_multipliers, res_blocks: the convolutional pixel decoder, finest level first.
        norm_groups: groups of its group norms; divides every channel count of the pixel decoder.
        image_channels: colour channels.
        temporal: the variant whose decoder looks at the earlier frames of a clip (TiTok_KL_wT).
        num_frames: frames of one such clip; longer videos are decoded as independent clips of this length.

    Raises:
        ConfigError: a size that is not positive, or sizes that do not fit together.
    """

    image_size: int = 256
    patch_size: int = 16
    encoder_width: int = 1024
    encoder_layers: int = 24
    encoder_heads: int = 16
    decoder_width: int = 1024
    decoder_layers: int = 24
    decoder_heads: int = 16
    num_latent_tokens: int = 32
    token_size: int = 4
    codebook_logits: int = 1024
    logits_hidden: int | None = None
    quantized_channels: int = 256
    hidden_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    norm_groups: int = 32
    image_channels: int = 3
    temporal: bool = False
    num_frames: int = 16

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "temporal":
                _require(isinstance(value, bool), "temporal", value, "True or False", "Pass a bool.")
            elif field.name == "channel_multipliers":
                fits = (
                    isinstance(value, tuple)
                    and 0 < len(value) <= MAX_LEVELS
                    and all(_positive_int(item) for item in value)
                )
                _require(
                    fits,
                    field.name,
                    value,
                    f"a tuple of 1 to {MAX_LEVELS} positive integers",
                    "Pass e.g. (1, 1, 2, 2, 4).",
                )
            elif not (field.name == "logits_hidden" and value is None):
                most = MAX_LAYERS if field.name.endswith(("layers", "blocks")) else MAX_SIZE
                _require(
                    _positive_int(value) and value <= most,
                    field.name,
                    value,
                    f"an integer from 1 to {most}",
                    "Pass a possible size.",
                )
        self._check_sizes()

    def _check_sizes(self) -> None:
        scale = 2 ** (len(self.channel_multipliers) - 1)
        _require(
            self.patch_size == scale,
            "patch_size does not fit channel_multipliers",
            f"patch_size {self.patch_size} with {len(self.channel_multipliers)} multipliers",
            f"patch_size {scale} = 2 ** (number of multipliers - 1)",
            "Change patch_size, or give one multiplier per doubling and one more.",
        )
        _require(
            self.image_size % self.patch_size == 0,
            "image_size is not a multiple of patch_size",
            f"image_size {self.image_size}, patch_size {self.patch_size}",
            f"a multiple of {self.patch_size}",
            f"Use {max(1, round(self.image_size / self.patch_size)) * self.patch_size}.",
        )
        for side, width, heads in (
            ("encoder", self.encoder_width, self.encoder_heads),
            ("decoder", self.decoder_width, self.decoder_heads),
        ):
            _require(
                width % heads == 0,
                f"{side}_width is not a multiple of {side}_heads",
                f"width {width}, heads {heads}",
                "width divisible by heads",
                "Change either of them.",
            )
        channels = sorted({self.hidden_channels * factor for factor in self.channel_multipliers})
        _require(
            all(count % self.norm_groups == 0 for count in channels),
            "norm_groups does not divide the channels of the pixel decoder",
            f"norm_groups {self.norm_groups}, channels {channels}",
            "a divisor of all of them",
            "Use a smaller norm_groups, or hidden_channels that are a multiple of it.",
        )

    @property
    def grid(self) -> int:
        """Tokens per side of the image grid."""
        return self.image_size // self.patch_size

    @property
    def logits_width(self) -> int:
        """Width inside the head that makes the code logits."""
        return 2 * self.decoder_width if self.logits_hidden is None else self.logits_hidden

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(c, 1, K), the shape of one frame's latent."""
        return (self.token_size, 1, self.num_latent_tokens)

    @classmethod
    def preset(cls, size: Literal["small", "base", "large"], *, temporal: bool = False) -> TiTokConfig:
        """Official sizes (width/layers/heads): small 512/8/8, base 768/12/12, large 1024/24/16."""
        if size not in _PRESETS:
            raise ConfigError(
                explain(
                    "preset", got=repr(size), expected=f"one of {list(_PRESETS)}", fix="Pick one of them."
                )
            )
        width, layers, heads = _PRESETS[size]
        return cls(
            encoder_width=width,
            encoder_layers=layers,
            encoder_heads=heads,
            decoder_width=width,
            decoder_layers=layers,
            decoder_heads=heads,
            temporal=temporal,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and booleans, ready for JSON."""
        values = dataclasses.asdict(self)
        values["channel_multipliers"] = list(self.channel_multipliers)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TiTokConfig:
        """The inverse of `to_dict`; absent settings take their defaults, unknown ones raise ConfigError."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    explain(
                        "unknown TiTok setting",
                        got=repr(name),
                        expected=f"one of {known}",
                        fix=f"Did you mean {nearest!r}?",
                    )
                )
        settings: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**settings)


def _positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(condition: bool, what: str, got: object, expected: object, fix: str) -> None:
    if not condition:
        raise ConfigError(explain(what, got=got, expected=expected, fix=fix))
