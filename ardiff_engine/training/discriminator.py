# SPDX-License-Identifier: Apache-2.0
"""PatchGAN discriminator of stage 1 (Isola et al. 2017), with the keys and sizes of the official one
(iva-mzsun/AR-Diffusion @ 7a37b94)."""

from __future__ import annotations

from torch import Tensor, nn

MAX_FACTOR = 8
LEAK = 0.2
INIT_STD = 0.02


class PatchDiscriminator(nn.Module):
    """Images [N, 3, H, W] -> one logit per patch [N, 1, h, w].

    4×4 convolutions: `layers` of stride 2 that double the channels (at most ×8), then two of stride 1.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(LEAK)]
        count = width
        for layer in range(1, layers + 1):
            wider = width * min(2**layer, MAX_FACTOR)
            stride = 2 if layer < layers else 1
            parts += [
                nn.Conv2d(count, wider, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(LEAK),
            ]
            count = wider
        self.main = nn.Sequential(*parts, nn.Conv2d(count, 1, 4, stride=1, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, mean=1.0, std=INIT_STD)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)
