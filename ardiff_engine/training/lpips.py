# SPDX-License-Identifier: Apache-2.0
"""LPIPS perceptual distance (Zhang et al. 2018) on VGG16 features. Weights come from a file of the user's
only.

    d(x, y) = sum_l mean_hw sum_c w_lc (f_lc(x)/|f_l(x)| - f_lc(y)/|f_l(y)|)²

Images in [0, 1] are mapped to [-1, 1] first, as the scaling layer expects, and nothing is dropped out (the
two slips of the official trainer, iva-mzsun/AR-Diffusion @ 7a37b94).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ardiff_engine.errors import CheckpointError
from ardiff_engine.parsing import check_regular, parsing

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10


class Lpips(nn.Module):
    """Distances [N] of images [N, 3, H, W] in [0, 1]; H and W at least 16.

    The file holds torchvision's VGG16 convolutions, `features.<i>.weight|bias`, and the five LPIPS heads
    `lin<l>.weight` [1, C, 1, 1]. Raises CheckpointError for a missing file, or missing or ill-fitting
    tensors.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, self.taps = 3, []
        for stage, widths in enumerate(STAGES):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        for stage, widths in enumerate(STAGES):
            self.add_module(f"lin{stage}", nn.Conv2d(widths[-1], 1, 1, bias=False))
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None], persistent=False)
        self._load(Path(weights))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        distance = x.new_zeros(x.shape[0])
        for stage, (a, b) in enumerate(zip(self._taps(x), self._taps(y), strict=True)):
            distance = distance + getattr(self, f"lin{stage}")((a - b).square()).mean(dim=(1, 2, 3))
        return distance

    def _taps(self, images: Tensor) -> list[Tensor]:
        h = (2 * images - 1 - self.shift) / self.scale
        found = []
        for index, layer in enumerate(self.features):
            h = layer(h)
            if index in self.taps:
                found.append(h / (h.square().sum(dim=1, keepdim=True).sqrt() + EPS))
        return found

    def _load(self, path: Path) -> None:
        fix = (
            "It must hold features.<i>.weight|bias and lin<l>.weight as safetensors: convert torchvision's "
            "VGG16 and the LPIPS heads to it, or set loss.lpips = 0."
        )
        check_regular(path)
        with parsing(f"LPIPS weights {path}", CheckpointError, fix):
            self.load_state_dict(load_file(path))
