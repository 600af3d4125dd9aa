# SPDX-License-Identifier: Apache-2.0
"""Sizes of a Wan transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ardiff_engine.arguments import number
from ardiff_engine.errors import ConfigError
from ardiff_engine.settings import MAX_LAYERS, MAX_SIZE

MAX_TIME_SCALE = 100.0

OFFICIAL_NAMES = {
    "dim": "width",
    "num_layers": "depth",
    "num_heads": "heads",
    "ffn_dim": "mlp_width",
    "in_dim": "channels",
    "out_dim": "out_channels",
    "patch_size": "patch",
    "text_len": "text_tokens",
    "freq_dim": "frequency_dim",
    "inject_sample_info": "fps_embedding",
    "t_scale": "time_scale",
}


@dataclass(frozen=True, slots=True)
class WanConfig:
    """The defaults are Wan 2.1's 1.3B (1,418,996,800 parameters).

    channels: of the input: those of the latents, and those that image-to-video models get beside them.
    patch: frames, rows and columns of one token; frames must be 1.
    text_tokens: rows of a prompt's embedding; shorter ones are padded with zeros, which are attended to.
    frequency_dim: of the sinusoid of a timestep.
    image_dim: of CLIP's image tokens, for Wan 2.1's image-to-video models; None without that branch.
    image_tokens: of them, for one picture.
    time_scale: frames stand that far apart on the time axis of the positions (LongLive 2.0's t_scale).
    actions: numbers that every frame is told beside its latents, such as which keys are held; None: none.
    fps_embedding: the model is told whether its pictures are 16 a second (SkyReels-V2 1.3B).

    ConfigError: sizes that are not whole numbers in range, or that do not go together.
    """

    width: int = 1536
    depth: int = 30
    heads: int = 12
    mlp_width: int = 8960
    channels: int = 16
    out_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    text_tokens: int = 512
    frequency_dim: int = 256
    image_dim: int | None = None
    image_tokens: int = 257
    eps: float = 1e-6
    fps_embedding: bool = False
    actions: int | None = None
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), MAX_LAYERS if field.name == "depth" else MAX_SIZE
            optional = value is None and field.name in ("image_dim", "actions")
            if optional or field.name in ("patch", "eps", "fps_embedding", "time_scale"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(
                    f"WanConfig.{field.name}: got {value!r}, expected a whole number in 1..{most}."
                )
        object.__setattr__(self, "patch", tuple(self.patch))
        if len(self.patch) != 3 or self.patch[0] != 1 or not all(1 <= size <= 16 for size in self.patch):
            raise ConfigError(f"WanConfig.patch: got {self.patch}, expected (1, rows, columns).")
        if self.width % self.heads or self.head_dim % 2 or self.head_dim < 6 or self.frequency_dim % 2:
            raise ConfigError(
                f"WanConfig: width {self.width}, heads {self.heads}, frequency_dim {self.frequency_dim}; "
                "expected heads that divide the width into even parts >= 6, and an even frequency_dim."
            )
        if not 0 < self.eps < 1:
            raise ConfigError(f"WanConfig.eps: got {self.eps!r}, expected a number in (0, 1).")
        object.__setattr__(self, "time_scale", number("WanConfig.time_scale", self.time_scale))
        if not 0 < self.time_scale <= MAX_TIME_SCALE:
            raise ConfigError(
                f"WanConfig.time_scale: got {self.time_scale}, expected in (0, {MAX_TIME_SCALE}]."
            )
        if not isinstance(self.fps_embedding, bool):
            raise ConfigError(f"WanConfig.fps_embedding: got {self.fps_embedding!r}, expected True or False.")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_official(cls, values: Mapping[str, Any]) -> WanConfig:
        """From the config.json of an official or Self-Forcing-style checkpoint. Keys that say nothing about
        sizes are passed over."""
        known = {field.name for field in fields(cls)}
        named = {OFFICIAL_NAMES.get(name, name): value for name, value in values.items()}
        sizes = {name: value for name, value in named.items() if name in known}
        if values.get("model_type") == "i2v":
            sizes.setdefault("image_dim", 1280)
        return cls(**sizes)
