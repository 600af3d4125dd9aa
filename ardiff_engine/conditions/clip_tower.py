# SPDX-License-Identifier: Apache-2.0
"""CLIP's view of a picture from the file of Wan 2.1's official release: the vision tower of OpenCLIP's
XLM-RoBERTa ViT-H/14, and the hidden states before its last layer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import isqrt, prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ardiff_engine.device import usable_device
from ardiff_engine.errors import CheckpointError
from ardiff_engine.weights.fit import block_count, check_fit, fill, shape_of
from ardiff_engine.weights.safetensors_file import SafetensorsFile

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_DIM = 80
_FRONT = "visual."
_UNUSED = ("head", "post_norm.weight", "post_norm.bias")
"""Of the tower, behind the layer that is read."""


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, -1, HEAD_DIM)).transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


@dataclass(frozen=True, slots=True)
class TowerFile:
    """names: of the layers that are used -> name in the file; shapes: theirs. layers: without the last."""

    file: SafetensorsFile
    names: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    width: int
    tokens: int
    layers: int

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TowerFile:
        """From the header alone. CheckpointError: another file, or tensors that are missing or misshapen."""
        file = SafetensorsFile(path)
        names = {name.removeprefix(_FRONT): name for name in file.shapes if name.startswith(_FRONT)}
        shapes = {name: file.shapes[stored] for name, stored in names.items()}
        origin = str(file.path)
        _, tokens, width = shape_of(shapes, "pos_embedding", 3, origin)
        layers = block_count(shapes, "transformer.", origin) - 1
        last = f"transformer.{layers}."
        used = [name for name in names if name not in _UNUSED and not name.startswith(last)]
        shapes = {name: shapes[name] for name in used}
        if layers < 1 or width % HEAD_DIM or isqrt(tokens - 1) ** 2 != tokens - 1:
            raise CheckpointError(
                f"{origin}: {layers + 1} layers, {tokens} tokens of {width}; expected at least 2, a square "
                f"of patches and one more, and a width in heads of {HEAD_DIM}."
            )
        found = cls(file, {name: names[name] for name in used}, shapes, width, tokens, layers)
        check_fit(
            {name: tuple(own.shape) for name, own in found.empty().state_dict().items()}, shapes, origin
        )
        return found

    @property
    def weights(self) -> int:
        return sum(map(prod, self.shapes.values()))

    def empty(self) -> CLIPTower:
        with torch.device("meta"):
            return CLIPTower(self)


class CLIPTower(nn.Module):
    """Pictures to tokens [1 + (size / patch)², width]."""

    def __init__(self, sizes: TowerFile) -> None:
        super().__init__()
        origin = str(sizes.file.path)
        width = sizes.width
        patch = shape_of(sizes.shapes, "patch_embedding.weight", 4, origin)[-1]
        mlp_width = shape_of(sizes.shapes, "transformer.0.mlp.0.weight", 2, origin)[0]
        self.size = patch * isqrt(sizes.tokens - 1)
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.cls_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embedding = nn.Parameter(torch.zeros(1, sizes.tokens, width))
        self.pre_norm = nn.LayerNorm(width)
        self.transformer = nn.Sequential(*[_Layer(width, mlp_width) for _ in range(sizes.layers)])

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> CLIPTower:
        """The official `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth` after `ardiff convert`; its
        text side is passed over.

        CheckpointError: as for `TowerFile.open`, or tensors that are NaN. ConfigError: an unknown device.
        """
        found = TowerFile.open(path)
        tower = found.empty()
        fill(tower, found.file, found.names, shapes=found.shapes, device=usable_device(device), dtype=dtype)
        return tower.eval()

    @torch.no_grad()
    def tokens(self, picture: Tensor) -> Tensor:
        """uint8 [H, W, 3] -> [rows, width] on the tower's device. The picture is squeezed into a square, as
        the official code does."""
        weight = self.patch_embedding.weight
        pixels = picture.to(weight.device).permute(2, 0, 1)[None].float() / 255
        pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bicubic", align_corners=False)
        mean, std = (pixels.new_tensor(own)[:, None, None] for own in (MEAN, STD))
        hidden: Tensor = self.hidden(((pixels - mean) / std).to(weight.dtype))
        return hidden[0]

    def hidden(self, pixels: Tensor) -> Tensor:
        """Normalised [B, 3, size, size] -> [B, rows, width], before the last layer."""
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_embedding.expand(len(x), -1, -1), x], dim=1) + self.pos_embedding
        out: Tensor = self.transformer(self.pre_norm(x))
        return out
