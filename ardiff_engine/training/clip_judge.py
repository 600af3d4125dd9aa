# SPDX-License-Identifier: Apache-2.0
"""A small network that tells two kinds of latent clips apart, place by place."""

from __future__ import annotations

from torch import Tensor, nn

WIDTH, LEAK = 64, 0.2


class ClipJudge(nn.Module):
    """Clips [B, F, channels, h, w] -> logits [B, F, h, w]: three 3 x 3 x 3 convolutions, so clips of any size
    are told by how they look and move within seven frames and places."""

    def __init__(self, channels: int, width: int = WIDTH) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv3d(channels, width, 3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv3d(width, width, 3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv3d(width, 1, 3, padding=1),
        )

    def __call__(self, clips: Tensor) -> Tensor:
        """Past the hooks of FSDP2, as networks are by `forward_clip`: the loop itself sums the gradients."""
        return self.forward(clips)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.main(clips.transpose(1, 2))
        return logits[:, 0]
