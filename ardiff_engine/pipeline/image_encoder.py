# SPDX-License-Identifier: Apache-2.0
"""CLIP's vision tower in the folder of an image-to-video model, found before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from ardiff_engine.conditions import CLIPTower, CLIPVision
from ardiff_engine.conditions.clip_tower import TowerFile
from ardiff_engine.errors import ConfigError
from ardiff_engine.models.wan import WanConfig
from ardiff_engine.parsing import read_json
from ardiff_engine.weights.safetensors_file import SafetensorsFile, unsafe

OFFICIAL = "models_clip_open-clip-xlm-roberta-large-vit-huge-14"

PictureEncoder = CLIPVision | CLIPTower


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """place: the folder with image_encoder/ as diffusers write it, or the official file. weights: how many
    numbers."""

    place: Path
    weights: int

    def load(self, device: torch.device, dtype: torch.dtype) -> PictureEncoder:
        if self.place.is_dir():
            return CLIPVision.from_pretrained(self.place, device=device, dtype=dtype)
        return CLIPTower.from_file(self.place, device=device, dtype=dtype)


def find_image_encoder(place: Path, config: WanConfig) -> ImageFiles:
    """Of a transformer with `image_dim`. ConfigError: none, or another one than it was trained with."""
    official = place / f"{OFFICIAL}.safetensors"
    file = place / "image_encoder" / "config.json"
    if file.is_file():
        values = read_json(file)
        width, tokens = _sizes(values if isinstance(values, dict) else {})
        shapes = SafetensorsFile(file.parent).shapes
        found = ImageFiles(place, sum(map(prod, shapes.values())))
    elif official.is_file():
        tower = TowerFile.open(official)
        width, tokens, found = tower.width, tower.tokens, ImageFiles(official, tower.weights)
    elif official.with_suffix(".pth").is_file():
        raise unsafe(official.with_suffix(".pth"))
    else:
        raise ConfigError(
            f"the transformer takes CLIP's view of a picture, and {place} holds neither image_encoder/ and "
            f"image_processor/, as diffusers write them, nor {official.name}."
        )
    if (width, tokens) != (config.image_dim, config.image_tokens):
        raise ConfigError(
            f"CLIP's vision tower in {found.place} gives {tokens} tokens of {width}, and the transformer "
            f"takes {config.image_tokens} of {config.image_dim}: they belong to different models."
        )
    return found


def _sizes(values: dict[str, object]) -> tuple[object, int | None]:
    """Width and tokens that a config.json says."""
    width, size, patch = (values.get(name) for name in ("hidden_size", "image_size", "patch_size"))
    square = isinstance(size, int) and isinstance(patch, int) and patch > 0
    return width, 1 + (size // patch) ** 2 if square else None  # type: ignore[operator]
